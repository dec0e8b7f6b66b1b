// Package kube reads the objects of a Kubernetes API server, as internal/config/file reads those of a folder.
package kube
