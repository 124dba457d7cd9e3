"""vtgate's gRPC protocol as a DBAPI and a dialect: ``vitess+grpc://user@host:15991/keyspace``."""
