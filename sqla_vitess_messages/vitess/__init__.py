"""What is particular to Vitess: its version, its vschema, its gRPC protocol and its quirks."""
