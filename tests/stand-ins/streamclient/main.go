// A client of streaming sessions made of what kubectl is made of: k8s.io/client-go's remotecommand and portforward.
//
//	streamclient run [-transport spdy|websocket] [-protocols A,B] [-stdin] [-stdout] [-stderr] [-tty] [-size WxH] URL
//	    carries its own standard streams; its exit code is the command's, 255 for any other error
//	streamclient many [-transport T]
//	    reads URLs of sessions with `cat`, one in a line, runs all at once, and compares what comes back
//	streamclient forward [-transport T] URL PORT...
//	    prints a local port for each, and forwards until its standard input ends
//	streamclient bench [-transport T] SOCKET CONTAINER COUNT
//	    asks for COUNT execs of `true`, one after the other, and prints how long each took in microseconds
//	streamclient throughput [-transport T] -way in|out SOCKET CONTAINER BYTES
//	    sends so many bytes to a command, or receives them of one, and prints how many went in a second
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/utils/exec"
)

var (
	transport = flag.String("transport", "spdy", "spdy or websocket")
	protocols = flag.String("protocols", "", "versions that are offered, instead of all")
	stdin     = flag.Bool("stdin", false, "send standard input")
	stdout    = flag.Bool("stdout", false, "receive output")
	stderr    = flag.Bool("stderr", false, "receive errors")
	tty       = flag.Bool("tty", false, "a terminal")
	way       = flag.String("way", "out", "in or out of the container")
	size      = flag.String("size", "", "its size, as WIDTHxHEIGHT")
)

// The certificate of a test is its own authority.
var config = &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}

func executor(address string) (remotecommand.Executor, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	var versions []string
	if *protocols != "" {
		versions = strings.Split(*protocols, ",")
	}
	switch {
	case *transport == "websocket" && versions == nil:
		return remotecommand.NewWebSocketExecutor(config, "GET", address)
	case *transport == "websocket":
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", address, versions...)
	case versions == nil:
		return remotecommand.NewSPDYExecutor(config, "POST", parsed)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, "POST", parsed, versions...)
}

// one tells one size.
type one struct {
	sizes chan *remotecommand.TerminalSize
}

func (o one) Next() *remotecommand.TerminalSize { return <-o.sizes }

func run(address string) error {
	client, err := executor(address)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stdout {
		options.Stdout = os.Stdout
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	if *size != "" {
		told := &remotecommand.TerminalSize{}
		if _, err := fmt.Sscanf(*size, "%dx%d", &told.Width, &told.Height); err != nil {
			return err
		}
		sizes := one{make(chan *remotecommand.TerminalSize, 1)}
		sizes.sizes <- told
		options.TerminalSizeQueue = sizes
	}
	return client.StreamWithContext(context.Background(), options)
}

func many() error {
	var addresses []string
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		addresses = append(addresses, lines.Text())
	}
	failures := make(chan error, len(addresses))
	// All sessions are there before the first of them may end.
	var begun, ended sync.WaitGroup
	begun.Add(len(addresses))
	for number, address := range addresses {
		ended.Add(1)
		go func() {
			defer ended.Done()
			if err := echo(address, fmt.Sprintf("session %d\n", number), &begun); err != nil {
				failures <- fmt.Errorf("session %d: %w", number, err)
			}
		}()
	}
	ended.Wait()
	close(failures)
	var all []error
	for err := range failures {
		all = append(all, err)
	}
	if len(all) == 0 {
		fmt.Println(len(addresses))
	}
	return errors.Join(all...)
}

// input gives its text; its end only when every other session has had its text back.
type input struct {
	text  io.Reader
	begun *sync.WaitGroup
}

func (i input) Read(into []byte) (int, error) {
	count, err := i.text.Read(into)
	if err == io.EOF {
		i.begun.Wait()
	}
	return count, err
}

// output counts its session as begun when its text is there.
type output struct {
	text   bytes.Buffer
	wanted int
	once   sync.Once
	begun  *sync.WaitGroup
}

func (o *output) Write(text []byte) (int, error) {
	count, err := o.text.Write(text)
	if o.text.Len() >= o.wanted {
		o.once.Do(o.begun.Done)
	}
	return count, err
}

func echo(address, text string, begun *sync.WaitGroup) error {
	out := &output{wanted: len(text), begun: begun}
	// A session that fails does not hold up the others.
	defer out.once.Do(begun.Done)
	client, err := executor(address)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdin: input{strings.NewReader(text), begun}, Stdout: out}
	if err := client.StreamWithContext(context.Background(), options); err != nil {
		return err
	}
	if out.text.String() != text {
		return fmt.Errorf("sent %q, received %q", text, out.text.String())
	}
	return nil
}

func forward(address string, ports []string) error {
	parsed, err := url.Parse(address)
	if err != nil {
		return err
	}
	var dialer httpstream.Dialer
	if *transport == "websocket" {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(parsed, config)
	} else {
		var roundTripper http.RoundTripper
		var upgrader spdy.Upgrader
		roundTripper, upgrader, err = spdy.RoundTripperFor(config)
		dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, "POST", parsed)
	}
	if err != nil {
		return err
	}
	for i, port := range ports {
		ports[i] = "0:" + port
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewForStreaming(dialer, ports, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		forwarded, err := forwarder.GetPorts()
		if err != nil {
			fmt.Fprintln(os.Stderr, "streamclient:", err)
		}
		for _, port := range forwarded {
			fmt.Println(port.Local)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}

func bench(socket, container string, count int) error {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	cri := runtime.NewRuntimeServiceClient(connection)
	var times []time.Duration
	for range count {
		begun := time.Now()
		request := &runtime.ExecRequest{ContainerId: container, Cmd: []string{"true"}, Stdout: true, Stderr: true}
		answer, err := cri.Exec(context.Background(), request)
		if err != nil {
			return err
		}
		client, err := executor(answer.Url)
		if err != nil {
			return err
		}
		options := remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}
		if err := client.StreamWithContext(context.Background(), options); err != nil {
			return err
		}
		times = append(times, time.Since(begun))
	}
	sort.Slice(times, func(a, b int) bool { return times[a] < times[b] })
	for _, took := range times {
		fmt.Println(took.Microseconds())
	}
	return nil
}

// counter takes so many bytes, and then says that it has them.
type counter struct {
	wanted int64
	full   func()
}

func (c *counter) Write(text []byte) (int, error) {
	before := c.wanted
	c.wanted -= int64(len(text))
	if before > 0 && c.wanted <= 0 {
		c.full()
	}
	return len(text), nil
}

// anything is as many bytes as are asked for, whatever they are.
type anything struct{}

func (anything) Read(into []byte) (int, error) { return len(into), nil }

func throughput(socket, container string, count int64) error {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var took time.Duration
	var begun time.Time
	var said bytes.Buffer
	request := &runtime.ExecRequest{ContainerId: container, Stdout: true, Cmd: []string{"cat", "/dev/zero"}}
	options := remotecommand.StreamOptions{Stdout: &counter{count, func() { took = time.Since(begun); cancel() }}}
	if *way == "in" {
		// When it has read all it says so.
		request.Cmd, request.Stdin = []string{"sh", "-c", "cat >/dev/null && echo end"}, true
		options = remotecommand.StreamOptions{Stdin: io.LimitReader(anything{}, count), Stdout: &said}
	}
	answer, err := runtime.NewRuntimeServiceClient(connection).Exec(ctx, request)
	if err != nil {
		return err
	}
	client, err := executor(answer.Url)
	if err != nil {
		return err
	}
	begun = time.Now()
	err = client.StreamWithContext(ctx, options)
	if *way == "in" {
		took = time.Since(begun)
		if err == nil && said.String() != "end\n" {
			err = errors.New("the command has not come to its end")
		}
	} else if took > 0 {
		err = nil
	}
	if err != nil {
		return err
	}
	fmt.Printf("%.0f\n", float64(count)/took.Seconds())
	return nil
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "streamclient: run, many, forward, bench or throughput?")
		os.Exit(255)
	}
	// An error leaves by its own exit code.
	_ = flag.CommandLine.Parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "run":
		err = run(flag.Arg(0))
	case "many":
		err = many()
	case "forward":
		err = forward(flag.Arg(0), flag.Args()[1:])
	case "bench":
		count, _ := strconv.Atoi(flag.Arg(2))
		err = bench(flag.Arg(0), flag.Arg(1), count)
	case "throughput":
		bytes, _ := strconv.ParseInt(flag.Arg(2), 10, 64)
		err = throughput(flag.Arg(0), flag.Arg(1), bytes)
	default:
		err = fmt.Errorf("%q is no command", os.Args[1])
	}
	var exit exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitStatus())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "streamclient:", err)
		os.Exit(255)
	}
}
