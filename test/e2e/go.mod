module github.com/malha-mesh/malha/test/e2e

go 1.26

require github.com/malha-mesh/malha/test/cluster v0.0.0

replace github.com/malha-mesh/malha/test/cluster => ../cluster
