package conformance

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
)

// current makes a failed case of the interop package, which would end the process, fail the test that runs it. The package
// has one logger for the process; its cases run on the goroutine of their test.
type current struct {
	mu sync.Mutex
	t  *testing.T
}

func (c *current) set(t *testing.T) { c.mu.Lock(); c.t = t; c.mu.Unlock() }
func (c *current) get() *testing.T  { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *current) Info(...any)               {}
func (c *current) Infoln(...any)             {}
func (c *current) Infof(string, ...any)      {}
func (c *current) Warning(...any)            {}
func (c *current) Warningln(...any)          {}
func (c *current) Warningf(string, ...any)   {}
func (c *current) Error(a ...any)            { c.get().Log(a...) }
func (c *current) Errorln(a ...any)          { c.get().Log(a...) }
func (c *current) Errorf(f string, a ...any) { c.get().Logf(f, a...) }
func (c *current) Fatal(a ...any)            { c.get().Fatal(a...) }
func (c *current) Fatalln(a ...any)          { c.get().Fatal(a...) }
func (c *current) Fatalf(f string, a ...any) { c.get().Fatalf(f, a...) }
func (c *current) V(int) bool                { return false }

var failures current

func init() { grpclog.SetLoggerV2(&failures) }

// TestGRPC runs the interop cases that need no cloud credentials (grpc/doc/interop-test-descriptions.md) through one proxy,
// and through the two of a mesh, with mutual TLS between them.
func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(orca.CallMetricsServerOption(nil), grpc.StatsHandler(sizes{}))
	testgrpc.RegisterTestServiceServer(server, compressing{interop.NewTestServer()})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	app := l.Addr().String()

	t.Run("one proxy", func(t *testing.T) {
		for _, d := range []plan.Direction{plan.Inbound, plan.Outbound, plan.Edge} {
			t.Run(string(d), func(t *testing.T) {
				p := newPlan(d, ident.GRPC, app, serverIdentity)
				p.Listeners[0].Bind = testport.Address(t)
				startProxy(t, p)
				interopCases(t, p.Listeners[0].Bind)
			})
		}
	})
	t.Run("two proxies", func(t *testing.T) {
		a := newAuthority(t)
		in := newPlan(plan.Inbound, ident.GRPC, app, serverIdentity)
		in.Listeners[0].Bind, in.Listeners[0].TLS = testport.Address(t), plan.TLSStrict
		startProxy(t, in, "--identity", a.issue(t, serverIdentity))
		out := newPlan(plan.Outbound, ident.GRPC, in.Listeners[0].Bind, clientIdentity)
		out.Listeners[0].Bind = testport.Address(t)
		out.Endpoints[0].Endpoints[0].Identity = serverIdentity
		startProxy(t, out, "--identity", a.issue(t, clientIdentity))
		interopCases(t, out.Listeners[0].Bind)
	})
}

func interopCases(t *testing.T, addr string) {
	channel := func() *grpc.ClientConn {
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("test.example.com"), grpc.WithStatsHandler(sizes{}),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}`)) // for orca_per_rpc
		if err != nil {
			t.Fatal(err)
		}
		return cc
	}
	cc := channel()
	t.Cleanup(func() { _ = cc.Close() })
	tc := testgrpc.NewTestServiceClient(cc)
	type call = func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)
	run := func(name string, f call) {
		t.Run(name, func(t *testing.T) {
			failures.set(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			f(ctx, tc)
		})
	}
	run("empty_unary", interop.DoEmptyUnaryCall)
	run("large_unary", interop.DoLargeUnaryCall)
	run("client_streaming", interop.DoClientStreaming)
	run("server_streaming", interop.DoServerStreaming)
	run("ping_pong", interop.DoPingPong)
	run("empty_stream", interop.DoEmptyStream)
	run("timeout_on_sleeping_server", interop.DoTimeoutOnSleepingServer)
	run("cancel_after_begin", interop.DoCancelAfterBegin)
	run("cancel_after_first_response", interop.DoCancelAfterFirstResponse)
	run("custom_metadata", interop.DoCustomMetadata)
	run("status_code_and_message", interop.DoStatusCodeAndMessage)
	run("special_status_message", interop.DoSpecialStatusMessage)
	run("unimplemented_method", func(ctx context.Context, _ testgrpc.TestServiceClient, _ ...grpc.CallOption) {
		interop.DoUnimplementedMethod(ctx, cc)
	})
	run("unimplemented_service", func(ctx context.Context, _ testgrpc.TestServiceClient, _ ...grpc.CallOption) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
	})
	run("client_compressed_unary", clientCompressedUnary)
	run("server_compressed_unary", serverCompressedUnary)
	run("orca_per_rpc", func(ctx context.Context, c testgrpc.TestServiceClient, _ ...grpc.CallOption) {
		interop.DoORCAPerRPCTest(ctx, c)
	})
	soak := func(channel func() (*grpc.ClientConn, func())) call {
		return func(ctx context.Context, _ testgrpc.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoSoakTest(ctx, interop.SoakTestConfig{RequestSize: 271828, ResponseSize: 314159, PerIterationMaxAcceptableLatency: 10 * time.Second,
				OverallTimeout: 20 * time.Second, ServerAddr: addr, NumWorkers: 4, Iterations: 40, ChannelForTest: channel})
		}
	}
	run("rpc_soak", soak(func() (*grpc.ClientConn, func()) { return cc, func() {} }))
	run("channel_soak", soak(func() (*grpc.ClientConn, func()) {
		c := channel()
		return c, func() { _ = c.Close() }
	}))
	failures.set(t)
}
