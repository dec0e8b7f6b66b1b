module github.com/malha-mesh/malha/test/cluster

go 1.26
