// Package arch holds the source tree to its architecture: layers.txt names every package, its kind and what it may
// import, and the test of this package reads the imports of the whole tree and compares.
//
// It has no code of its own. When the design must change, change the row in the same commit and say why.
package arch
