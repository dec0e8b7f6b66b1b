package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
)

// farewell is the message by which a server asks the client of a stream to finish: what the client has sent until it hears
// this is still answered.
const farewell = "farewell"

// serve answers with the name of the pod until ctx ends, and finishes what is under way.
func serve(ctx context.Context) error {
	answer, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		_, _ = io.WriteString(w, answer)
	})
	// Some requests take a while, so that there are always some under way when the end comes.
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(w, answer)
	})
	web := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetUnencryptedHTTP2(true)
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":9090")
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(rpc, &streams{ending: ctx.Done()})
	failed := make(chan error, 2)
	go func() { failed <- web.ListenAndServe() }()
	go func() { failed <- rpc.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		rpc.GracefulStop()
	}()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	err = web.Shutdown(bounded)
	<-done
	return err
}

// streams answers each message of a stream with the same one.
type streams struct {
	grpc_testing.UnimplementedTestServiceServer
	ending <-chan struct{}
}

func (s *streams) FullDuplexCall(st grpc_testing.TestService_FullDuplexCallServer) error {
	type message struct {
		in  *grpc_testing.StreamingOutputCallRequest
		err error
	}
	messages := make(chan message)
	go func() {
		for {
			in, err := st.Recv()
			select {
			case messages <- message{in, err}:
			case <-st.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	ending := s.ending
	for {
		select {
		case <-ending:
			ending = nil
			if err := st.Send(&grpc_testing.StreamingOutputCallResponse{Payload: &grpc_testing.Payload{Body: []byte(farewell)}}); err != nil {
				return err
			}
		case m := <-messages:
			if errors.Is(m.err, io.EOF) {
				return nil
			}
			if m.err != nil {
				return m.err
			}
			if err := st.Send(&grpc_testing.StreamingOutputCallResponse{Payload: m.in.GetPayload()}); err != nil {
				return err
			}
		case <-st.Context().Done():
			return st.Context().Err()
		}
	}
}
