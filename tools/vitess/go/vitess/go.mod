// The version of Vitess that the tests run against.
module sqla-vitess-messages/tools/vitess

go 1.24

require vitess.io/vitess v0.22.1
