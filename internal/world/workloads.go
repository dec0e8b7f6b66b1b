package world

import (
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// workloadIndex finds workloads. Every list is sorted by name. On a cluster they are Pods, which come and go.
type workloadIndex struct {
	all     []*model.Workload
	byName  sharded[ident.Name, *model.Workload]
	byLabel sharded[namespaceLabel, []*model.Workload]
}

type namespaceLabel struct {
	namespace string
	label
}

func indexWorkloads(all []model.Workload) workloadIndex {
	x := workloadIndex{byName: newSharded[ident.Name, *model.Workload](), byLabel: newSharded[namespaceLabel, []*model.Workload]()}
	for i := range all {
		if wl := &all[i]; x.byName.get(wl.Name) == nil {
			x.byName.put(wl.Name, wl)
			x.all = append(x.all, wl)
		}
	}
	slices.SortFunc(x.all, func(a, b *model.Workload) int { return a.Name.Compare(b.Name) })
	byLabel := map[namespaceLabel][]*model.Workload{}
	for _, wl := range x.all {
		for k, v := range wl.Labels {
			l := namespaceLabel{wl.Name.Namespace, label{k, v}}
			byLabel[l] = append(byLabel[l], wl)
		}
	}
	for l, list := range byLabel {
		x.byLabel.put(l, list)
	}
	return x
}

// with returns x with workloads set and gone.
func (x *workloadIndex) with(set []model.Workload, gone []ident.Name) workloadIndex {
	names, labels, all := x.byName.edit(), x.byLabel.edit(), slices.Clone(x.all)
	byName := func(wl *model.Workload, name ident.Name) int { return wl.Name.Compare(name) }
	remove := func(name ident.Name) {
		wl := names.next.get(name)
		if wl == nil {
			return
		}
		names.remove(name)
		if at, ok := slices.BinarySearchFunc(all, name, byName); ok {
			all = slices.Delete(all, at, at+1)
		}
		for k, v := range wl.Labels {
			l := namespaceLabel{name.Namespace, label{k, v}}
			list := slices.Clone(labels.next.get(l))
			if at, ok := slices.BinarySearchFunc(list, name, byName); ok {
				list = slices.Delete(list, at, at+1)
			}
			if len(list) == 0 {
				labels.remove(l)
			} else {
				labels.set(l, list)
			}
		}
	}
	for _, name := range gone {
		remove(name)
	}
	for i := range set {
		wl := &set[i]
		remove(wl.Name)
		names.set(wl.Name, wl)
		at, _ := slices.BinarySearchFunc(all, wl.Name, byName)
		all = slices.Insert(all, at, wl)
		for k, v := range wl.Labels {
			l := namespaceLabel{wl.Name.Namespace, label{k, v}}
			list := labels.next.get(l)
			at, _ := slices.BinarySearchFunc(list, wl.Name, byName)
			labels.set(l, slices.Insert(slices.Clone(list), at, wl))
		}
	}
	return workloadIndex{all: all, byName: names.next, byLabel: labels.next}
}

// workloadsIn returns the workloads of a namespace, sorted by name.
func (w *World) workloadsIn(namespace string) []*model.Workload {
	byNamespace := func(wl *model.Workload, ns string) int {
		if wl.Name.Namespace < ns {
			return -1
		}
		return 1
	}
	from, _ := slices.BinarySearchFunc(w.workloads.all, namespace, byNamespace)
	to := from
	for to < len(w.workloads.all) && w.workloads.all[to].Name.Namespace == namespace {
		to++
	}
	return w.workloads.all[from:to]
}

// selected returns the workloads of a namespace that a selector takes, sorted by name; none for an empty one.
func (w *World) selected(namespace string, selector map[string]string) []*model.Workload {
	l, ok := firstLabel(selector)
	if !ok {
		return nil
	}
	var out []*model.Workload
	for _, wl := range w.workloads.byLabel.get(namespaceLabel{namespace, l}) {
		if model.HasLabels(wl.Labels, selector) {
			out = append(out, wl)
		}
	}
	return out
}
