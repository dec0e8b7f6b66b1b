package conformance

import (
	"bytes"
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/grpclog"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// The cases about compression, which grpc-go's own client and server do not have. Those of streams, in which some
// messages of one call are compressed and others are not, can't be said with it.

// squeezed in a context is whether the last message of its call was compressed on the wire.
type squeezed struct{}

// sizes notices it, on either side.
type sizes struct{}

func (sizes) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	if ctx.Value(squeezed{}) != nil {
		return ctx // who calls wants to know
	}
	return context.WithValue(ctx, squeezed{}, new(bool))
}

func (sizes) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		*ctx.Value(squeezed{}).(*bool) = in.CompressedLength != in.Length
	}
}

func (sizes) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sizes) HandleConn(context.Context, stats.ConnStats)                       {}

// compressing is the test server, with what the cases want of one.
type compressing struct{ testgrpc.TestServiceServer }

func (c compressing) UnaryCall(ctx context.Context, in *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	if want := in.GetExpectCompressed(); want != nil && want.GetValue() != *ctx.Value(squeezed{}).(*bool) {
		return nil, status.Errorf(codes.InvalidArgument, "compressed: %v, as was expected: %v", !want.GetValue(), want.GetValue())
	}
	if in.GetResponseCompressed().GetValue() {
		if err := grpc.SetSendCompressor(ctx, gzip.Name); err != nil {
			return nil, err
		}
	}
	return c.TestServiceServer.UnaryCall(ctx, in)
}

func fatalf(format string, a ...any) { grpclog.Component("interop").Fatalf(format, a...) }

func large(in *testgrpc.SimpleRequest) *testgrpc.SimpleRequest {
	in.ResponseType, in.ResponseSize = testgrpc.PayloadType_COMPRESSABLE, 314159
	in.Payload = &testgrpc.Payload{Type: testgrpc.PayloadType_COMPRESSABLE, Body: make([]byte, 271828)}
	return in
}

func answered(resp *testgrpc.SimpleResponse, err error) {
	if err != nil || !bytes.Equal(resp.GetPayload().GetBody(), make([]byte, 314159)) {
		fatalf("%d bytes, %v", len(resp.GetPayload().GetBody()), err)
	}
}

func clientCompressedUnary(ctx context.Context, c testgrpc.TestServiceClient, _ ...grpc.CallOption) {
	yes, no := &testgrpc.BoolValue{Value: true}, &testgrpc.BoolValue{}
	if _, err := c.UnaryCall(ctx, large(&testgrpc.SimpleRequest{ExpectCompressed: yes})); status.Code(err) != codes.InvalidArgument {
		fatalf("the probe, which is not compressed: %v", err)
	}
	answered(c.UnaryCall(ctx, large(&testgrpc.SimpleRequest{ExpectCompressed: yes}), grpc.UseCompressor(gzip.Name)))
	answered(c.UnaryCall(ctx, large(&testgrpc.SimpleRequest{ExpectCompressed: no})))
}

func serverCompressedUnary(ctx context.Context, c testgrpc.TestServiceClient, _ ...grpc.CallOption) {
	for _, want := range []bool{true, false} {
		got := new(bool)
		answered(c.UnaryCall(context.WithValue(ctx, squeezed{}, got), large(&testgrpc.SimpleRequest{ResponseCompressed: &testgrpc.BoolValue{Value: want}})))
		if *got != want {
			fatalf("the answer is compressed: %v, want %v", *got, want)
		}
	}
}
