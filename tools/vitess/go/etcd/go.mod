// VERSION stands for the version of etcd that tools/vitess is to build.
module sqla-vitess-messages/tools/etcd

go 1.24

require go.etcd.io/etcd/server/v3 VERSION
