// nriplugins is a set of NRI plugins for tests. They use the reference library for plugins (github.com/containerd/nri/pkg/stub)
// and behave as the reference plugins logger, differ, device-injector, ulimit-adjuster and hook-injector do, whose modules the Go
// module proxy does not have. The name of the plugin selects its behavior.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"go.yaml.in/yaml/v3"
)

// config is the configuration of a plugin, in YAML.
type config struct {
	// Log is the file to which logger and differ write.
	Log string `yaml:"log"`
	// Hook is the program that hook-injector adds.
	Hook string `yaml:"hook"`
}

type base struct {
	mu     sync.Mutex
	config config
}

func (b *base) Configure(_ context.Context, text, runtime, version string) (stub.EventMask, error) {
	if err := yaml.Unmarshal([]byte(text), &b.config); err != nil {
		return 0, err
	}
	b.write("Configure", runtime)
	return 0, nil
}

func (b *base) write(event string, about any) {
	if b.config.Log == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	file, err := os.OpenFile(b.config.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	text, err := json.Marshal(about)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(file, "%s %s\n", event, text)
}

// logger writes every event with its pod and container.
type logger struct{ base }

func (l *logger) log(event string, pod *api.PodSandbox, container *api.Container) error {
	l.write(event, map[string]any{"pod": pod, "container": container})
	return nil
}

func (l *logger) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	l.write("Synchronize", map[string]int{"pods": len(pods), "containers": len(containers)})
	return nil, nil
}
func (l *logger) Shutdown(context.Context) { l.write("Shutdown", nil) }
func (l *logger) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return l.log("RunPodSandbox", p, nil)
}
func (l *logger) UpdatePodSandbox(_ context.Context, p *api.PodSandbox, _, _ *api.LinuxResources) error {
	return l.log("UpdatePodSandbox", p, nil)
}
func (l *logger) PostUpdatePodSandbox(_ context.Context, p *api.PodSandbox) error {
	return l.log("PostUpdatePodSandbox", p, nil)
}
func (l *logger) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return l.log("StopPodSandbox", p, nil)
}
func (l *logger) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	return l.log("RemovePodSandbox", p, nil)
}
func (l *logger) CreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	adjust := &api.ContainerAdjustment{}
	adjust.AddAnnotation("logger", "10-logger")
	return adjust, nil, l.log("CreateContainer", p, c)
}
func (l *logger) PostCreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	return l.log("PostCreateContainer", p, c)
}
func (l *logger) StartContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	return l.log("StartContainer", p, c)
}
func (l *logger) PostStartContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	return l.log("PostStartContainer", p, c)
}
func (l *logger) UpdateContainer(_ context.Context, p *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	return nil, l.log("UpdateContainer", p, c)
}
func (l *logger) PostUpdateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	return l.log("PostUpdateContainer", p, c)
}
func (l *logger) StopContainer(_ context.Context, p *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, l.log("StopContainer", p, c)
}
func (l *logger) RemoveContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	return l.log("RemoveContainer", p, c)
}

// differ writes the container as the plugins before it have changed it.
type differ struct{ base }

func (d *differ) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	d.write("CreateContainer", c)
	return nil, nil, nil
}

// annotation returns the annotation of a pod for a container.
func annotation(p *api.PodSandbox, c *api.Container, prefix string, into any) (bool, error) {
	for _, key := range []string{prefix + "/container." + c.Name, prefix + "/pod", prefix} {
		if text, ok := p.Annotations[key]; ok {
			return true, yaml.Unmarshal([]byte(text), into)
		}
	}
	return false, nil
}

// deviceInjector adds the devices and mounts in annotations of the pod.
type deviceInjector struct{ base }

func (*deviceInjector) CreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	var devices []struct {
		Path         string
		Type         string
		Major, Minor int64
		FileMode     uint32 `yaml:"file_mode"`
	}
	var mounts []struct {
		Source, Destination, Type string
		Options                   []string
	}
	var cdi []string
	for prefix, into := range map[string]any{"devices.nri.io": &devices, "mounts.nri.io": &mounts, "cdi-devices.nri.io": &cdi} {
		if _, err := annotation(p, c, prefix, into); err != nil {
			return nil, nil, fmt.Errorf("invalid annotation %s: %w", prefix, err)
		}
	}
	adjust := &api.ContainerAdjustment{}
	for _, d := range devices {
		device := &api.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor}
		if d.FileMode != 0 {
			device.FileMode = api.FileMode(d.FileMode)
		}
		adjust.AddDevice(device)
	}
	for _, m := range mounts {
		adjust.AddMount(&api.Mount{Source: m.Source, Destination: m.Destination, Type: m.Type, Options: m.Options})
	}
	for _, name := range cdi {
		adjust.AddCDIDevice(&api.CDIDevice{Name: name})
	}
	return adjust, nil, nil
}

// ulimitAdjuster sets the limits in annotations of the pod.
type ulimitAdjuster struct{ base }

func (*ulimitAdjuster) CreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	var limits []struct {
		Type       string
		Hard, Soft uint64
	}
	if found, err := annotation(p, c, "ulimits.nri.containerd.io", &limits); !found || err != nil {
		return nil, nil, err
	}
	adjust := &api.ContainerAdjustment{}
	for _, l := range limits {
		name := strings.ToUpper(l.Type)
		if !strings.HasPrefix(name, "RLIMIT_") {
			name = "RLIMIT_" + name
		}
		adjust.AddRlimit(name, l.Hard, l.Soft)
	}
	return adjust, nil, nil
}

// hookInjector adds a hook of each kind that runs on the host.
type hookInjector struct{ base }

func (h *hookInjector) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	hook := func(kind string) []*api.Hook {
		return []*api.Hook{{Path: h.config.Hook, Args: []string{"hook", kind}, Env: []string{"PATH=/usr/bin:/bin"}}}
	}
	adjust := &api.ContainerAdjustment{}
	adjust.AddHooks(&api.Hooks{
		Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"),
		Poststart: hook("poststart"), Poststop: hook("poststop"),
	})
	return adjust, nil, nil
}

func main() {
	name := flag.String("name", os.Getenv(api.PluginNameEnvVar), "name of the plugin")
	index := flag.String("idx", "", "index, if the daemon has not started the plugin")
	socket := flag.String("socket", "", "socket, if the daemon has not started the plugin")
	flag.Parse()
	plugins := map[string]any{
		"logger": &logger{}, "differ": &differ{}, "device-injector": &deviceInjector{},
		"ulimit-adjuster": &ulimitAdjuster{}, "hook-injector": &hookInjector{},
	}
	plugin, ok := plugins[*name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no plugin %q\n", *name)
		os.Exit(2)
	}
	var options []stub.Option
	if *index != "" {
		options = append(options, stub.WithPluginName(*name), stub.WithPluginIdx(*index), stub.WithSocketPath(*socket))
	}
	s, err := stub.New(plugin, options...)
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
