// Streams timesteps into a session, from the shipped contract alone: one a line of CSV, each answered by a line.
//
//	go mod init example
//	protoc -I DNC_SERVE/proto --go_out=.. --go-grpc_out=.. \
//	    --go_opt=Mdnc/v1/dnc.proto=example/dncv1 --go-grpc_opt=Mdnc/v1/dnc.proto=example/dncv1 dnc/v1/dnc.proto
//	go mod tidy
//	go run . localhost:8500 ward-3 < timesteps.csv
//
// in a folder that is called example. A server that is killed is waited for, and what it had not answered is sent again
// at the same positions, so that each timestep is applied once. The same holds if this program is killed:
// `go run . HOST:PORT SESSION POSITION` goes on behind a position, with the lines that follow it, also if some of them
// had been applied unseen.
//
// Through a proxy it needs no change. Two writers of one session at once want a WriterId each.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "example/dncv1"
)

const (
	pause  = 200 * time.Millisecond
	window = 16 // chunks in flight; the server keeps the answers of as many and more (GetModel says how many)
)

// A session, the timesteps that are to come, and those that are sent and not answered.
type session struct {
	client     pb.DncServiceClient
	id         string
	position   uint64
	timesteps  <-chan *pb.Array // nil when all are sent
	unanswered []*pb.Chunk
}

func main() {
	log.SetFlags(0)
	target, id := os.Args[1], os.Args[2]
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	client := pb.NewDncServiceClient(connection)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-dnc-session", id) // proxies hash on it
	request := &pb.CreateSessionRequest{SessionId: id, AllowExisting: true}
	created, err := client.CreateSession(ctx, request, grpc.WaitForReady(true))
	check(err)
	s := &session{client: client, id: id, position: created.Session.Position, timesteps: read(os.Stdin)}
	if len(os.Args) > 3 {
		s.position, err = strconv.ParseUint(os.Args[3], 10, 64)
		check(err)
	}
	for s.timesteps != nil || len(s.unanswered) > 0 {
		if err := s.stream(ctx); err != nil && err != io.EOF {
			if status.Code(err) != codes.Unavailable {
				log.Fatal(err)
			}
			log.Printf("unavailable, and asked again: %v", err)
			time.Sleep(pause)
		}
	}
}

// stream sends what is unanswered again, then what comes, and prints answers, until all are answered or it breaks.
func (s *session) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.Stream(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	send := func(chunk *pb.Chunk) { // a broken stream is told of by what it receives
		_ = stream.Send(&pb.StreamRequest{Message: &pb.StreamRequest_Chunk{Chunk: chunk}})
	}
	for _, chunk := range s.unanswered {
		send(chunk)
	}
	answers, broken := make(chan *pb.StreamResponse), make(chan error, 1)
	go func() {
		for {
			answer, err := stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case answers <- answer:
			case <-ctx.Done():
				return
			}
		}
	}()
	for s.timesteps != nil || len(s.unanswered) > 0 {
		timesteps := s.timesteps
		if len(s.unanswered) >= window {
			timesteps = nil
		}
		select {
		case array, more := <-timesteps:
			if !more {
				s.timesteps = nil
				continue
			}
			position := s.position
			chunk := &pb.Chunk{SessionId: s.id, Position: &position, Inputs: array}
			s.position++
			s.unanswered = append(s.unanswered, chunk)
			send(chunk)
		case answer := <-answers:
			switch {
			case answer.GetGoAway() != nil: // the server leaves; another one, or the same, will come
				return status.Error(codes.Unavailable, answer.GetGoAway().Reason)
			case answer.GetError() != nil:
				return status.ErrorProto(answer.GetError().Status)
			}
			fmt.Printf("%d: %s\n", answer.GetChunk().Position, written(answer.GetChunk().Outputs.Data))
			s.unanswered = s.unanswered[1:]
		case err := <-broken:
			return err
		}
	}
	return nil
}

// read gives one array for each line of numbers; the channel is closed behind the last one.
func read(from io.Reader) <-chan *pb.Array {
	arrays := make(chan *pb.Array)
	go func() {
		defer close(arrays)
		for lines := bufio.NewScanner(from); lines.Scan(); {
			var data []byte
			fields := strings.Split(lines.Text(), ",")
			for _, field := range fields {
				number, err := strconv.ParseFloat(strings.TrimSpace(field), 32)
				check(err)
				data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(number)))
			}
			arrays <- &pb.Array{Shape: []uint32{1, uint32(len(fields))}, Data: data}
		}
	}()
	return arrays
}

func written(data []byte) string {
	var numbers []string
	for ; len(data) > 0; data = data[4:] {
		number := math.Float32frombits(binary.LittleEndian.Uint32(data))
		numbers = append(numbers, strconv.FormatFloat(float64(number), 'g', -1, 32))
	}
	return strings.Join(numbers, ",")
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
