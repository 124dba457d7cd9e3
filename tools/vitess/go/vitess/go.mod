// VERSION stands for the version of Vitess that tools/vitess is to build.
module sqla-vitess-messages/tools/vitess

go 1.24

require vitess.io/vitess VERSION
