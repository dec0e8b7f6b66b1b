package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// newLoadBalancer stands in for a cloud: it gives each Service of type LoadBalancer an address of a range, in its status: the
// one that spec.loadBalancerIP asks for, none when that is of another range or taken. kube-proxy does the rest.
func newLoadBalancer() *cobra.Command {
	var kubeconfig, addresses string
	cmd := &cobra.Command{Use: "loadbalancer", Short: "Give Services of type LoadBalancer addresses", SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) error {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		within, err := netip.ParsePrefix(addresses)
		if err != nil {
			return err
		}
		return balance(cmd.Context(), client, within)
	}}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	cmd.Flags().StringVar(&addresses, "addresses", "", "the range of addresses, as a CIDR")
	return cmd
}

func balance(ctx context.Context, client kubernetes.Interface, within netip.Prefix) error {
	factory := informers.NewSharedInformerFactory(client, 10*time.Second) // what failed is tried again at the next resync
	services := factory.Core().V1().Services()
	changed := make(chan struct{}, 1)
	note := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := services.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { note() }, UpdateFunc: func(any, any) { note() }, DeleteFunc: func(any) { note() },
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		used := map[netip.Addr]bool{}
		var without []*core.Service
		for _, obj := range services.Informer().GetStore().List() {
			s, ok := obj.(*core.Service)
			if !ok || s.Spec.Type != core.ServiceTypeLoadBalancer {
				continue
			}
			in := s.Status.LoadBalancer.Ingress
			if len(in) == 0 || s.Spec.LoadBalancerIP != "" && in[0].IP != s.Spec.LoadBalancerIP {
				without = append(without, s)
			} else if a, err := netip.ParseAddr(in[0].IP); err == nil {
				used[a] = true
			}
		}
		for _, s := range without {
			a, err := choose(within, used, s.Spec.LoadBalancerIP)
			s = s.DeepCopy()
			s.Status.LoadBalancer.Ingress = nil
			if err == nil {
				used[a] = true
				mode := core.LoadBalancerIPModeVIP
				s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: a.String(), IPMode: &mode}}
			}
			_, failed := client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, meta.UpdateOptions{})
			err = errors.Join(err, failed)
			if err != nil {
				slog.Error("no address", "service", s.Namespace+"/"+s.Name, "error", err)
			}
		}
	}
}

// choose returns the address that is asked for, or, when none is, a free one.
func choose(within netip.Prefix, used map[netip.Addr]bool, asked string) (netip.Addr, error) {
	if asked == "" {
		return free(within, used)
	}
	a, err := netip.ParseAddr(asked)
	switch {
	case err != nil:
		return a, err
	case !within.Contains(a):
		return a, fmt.Errorf("%s is asked for, and the range is %s", a, within)
	case used[a]:
		return a, fmt.Errorf("%s is asked for, and is taken", a)
	}
	return a, nil
}

// free returns the first address of a range that is not used; neither the first of the range nor the last.
func free(within netip.Prefix, used map[netip.Addr]bool) (netip.Addr, error) {
	for a := within.Masked().Addr().Next(); within.Contains(a.Next()); a = a.Next() {
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("all addresses are used")
}
