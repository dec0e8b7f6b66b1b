package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// MostHealth is what is worth reading of an answer to a health check, in bytes: a HealthCheckResponse is two.
const MostHealth = 4 << 10

// HealthMethod is the path of grpc.health.v1.Health/Check (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
const HealthMethod = "/grpc.health.v1.Health/Check"

// HealthQuestion returns the one message that asks for a service: a byte for no compression, its length in four (gRPC over HTTP/2), and
// HealthCheckRequest{1: service}.
func HealthQuestion(service string) []byte {
	var msg []byte
	if service != "" {
		msg = append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service))), service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
}

// AskHealth is grpc.health.v1.Health/Check (gRPC "Health Checking Protocol") for a service, "" being the whole server; nil is SERVING.
// The caller sets deadlines before and closes up.
func AskHealth(up Upstream, authority, host, agent, service string) error {
	r := &message.Request{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte(authority), Host: []byte(host),
		Path: []byte(HealthMethod), Major: 2, Length: message.Unknown}
	r.Fields.Add("content-type", []byte("application/grpc"))
	r.Fields.Add("te", []byte("trailers"))
	r.Fields.Add("user-agent", []byte(agent))
	resp, err := Ask(up, r, HealthQuestion(service))
	if err != nil {
		return err
	}
	if resp.Status != 200 {
		return fmt.Errorf("status %d for a gRPC health check", resp.Status)
	}
	var body []byte
	for {
		p, err := up.ReadBody()
		body = append(body, p...)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if len(body) > MostHealth {
			break // HealthAnswer says so
		}
	}
	outcome := resp.Fields // of an answer that is trailers alone
	if _, ok := outcome.Get("grpc-status"); !ok {
		outcome = up.Trailers()
	}
	status, _ := outcome.Get("grpc-status")
	text, _ := outcome.Get("grpc-message")
	return HealthAnswer(string(status), string(text), body)
}

// HealthAnswer says what the answer to a HealthQuestion means: its grpc-status and grpc-message, and its body, of which a little more
// than MostHealth may have been read; nil is SERVING.
func HealthAnswer(status, text string, body []byte) error {
	if len(body) > MostHealth {
		return errors.New("the answer to a health check is too long")
	}
	if status != "0" {
		return fmt.Errorf("the health check ended with grpc-status %.20q %.200q", status, text)
	}
	if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:5])) != len(body)-5 {
		return errors.New("the answer is not one gRPC message")
	}
	return readHealth(body[5:])
}

// readHealth reads HealthCheckResponse{1: status}, of which 1 is SERVING. It has no fields of other wire types.
func readHealth(msg []byte) error {
	status := uint64(0)
	for len(msg) > 0 {
		tag, n := binary.Uvarint(msg)
		if n <= 0 || tag&7 != 0 {
			return errors.New("the answer is not a HealthCheckResponse")
		}
		v, m := binary.Uvarint(msg[n:])
		if m <= 0 {
			return errors.New("the answer is cut off")
		}
		if tag>>3 == 1 {
			status = v
		}
		msg = msg[n+m:]
	}
	words := [...]string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}
	switch {
	case status == 1:
		return nil
	case status < uint64(len(words)):
		return fmt.Errorf("it says %s", words[status])
	}
	return fmt.Errorf("it says health status %d", status)
}
