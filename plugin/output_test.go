package plugin

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const written = "{\n \"version\": \"new\"}\n"

func writeTo(t *testing.T, path string, text string) string {
	require.NoError(t, os.WriteFile(path, []byte(text), 0o640))
	return path
}

func content(t *testing.T, path string) string {
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// No file is replaced that the library did not write, whatever leads to it.
func TestOutputReplacesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	link := func(name, to string) string {
		require.NoError(t, os.Symlink(to, at(name)))
		return at(name)
	}
	old := "{\"version\":\"old\"}"
	for _, path := range []string{
		at("new.json"), writeTo(t, at("empty.json"), ""), writeTo(t, at("old.json"), old), writeTo(t, at("laid out"), " {\n\t\"version\" : \"old\"}"),
		link("to old", writeTo(t, at("target.json"), old)), link("relative", "target.json"), link("of a link", at("relative")),
	} {
		was, _ := os.Lstat(path)
		require.NoError(t, WriteFile(path, []byte(written)), path)
		require.Equal(t, written, content(t, path))
		is, err := os.Lstat(path)
		require.NoError(t, err)
		if was != nil {
			require.Equal(t, was.Mode(), is.Mode(), "%s: a link stays one, and the mode stays", path)
		}
	}
	writeTo(t, at("model.gguf"), "GGUF precious")
	require.NoError(t, os.Mkdir(at("folder"), 0o700))
	require.NoError(t, syscall.Mkfifo(at("pipe"), 0o600))
	for _, c := range []struct{ path, says string }{
		{at("model.gguf"), "not written by this library"},
		{writeTo(t, at("short"), "{"), "not written by this library"},
		{link("to model", at("model.gguf")), "not written by this library"},
		{at("folder"), "is a folder"},
		{link("to folder", at("folder")), "is a folder"},
		{link("to nothing", at("none")), "is a link to " + at("none")},
		{link("round", at("round")), "too many"},
		{filepath.Join(at("none"), "stats.json"), "no such file"},
		{filepath.Join(at("model.gguf"), "stats.json"), "not a directory"},
		{at("pipe"), "no such device"}, // nobody reads it
	} {
		err := WriteFile(c.path, []byte(written))
		require.ErrorContains(t, err, c.says, c.path)
		require.ErrorContains(t, err, c.path+": ")
		require.NotContains(t, err.Error(), ".lessismore-", "the temporary name says nothing to anybody")
	}
	require.Equal(t, "GGUF precious", content(t, at("model.gguf")))
	left, err := filepath.Glob(at(".lessismore-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// Devices, pipes and open files are written to, under any of their names, and stay what they are.
func TestOutputToStreams(t *testing.T) {
	dir := t.TempDir()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer log.Close()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer reader.Close()
	name := func(f *os.File, folder string) string { return filepath.Join(folder, strconv.Itoa(int(f.Fd()))) }
	stdout := filepath.Join(dir, "stdout") // as /dev/stdout is
	require.NoError(t, os.Symlink(name(write, "/proc/self/fd"), stdout))
	for _, path := range []string{stdout, name(write, "/dev/fd"), fifo, name(log, "/dev/fd"), name(log, "/proc/self/fd"), "/dev/null"} {
		before, err := os.Lstat(path)
		require.NoError(t, err)
		require.NoError(t, WriteFile(path, []byte(written)), path)
		after, err := os.Lstat(path)
		require.NoError(t, err)
		require.Equal(t, before.Mode(), after.Mode(), path)
	}
	require.NoError(t, write.Close())
	got := make([]byte, 4096)
	for _, from := range []*os.File{read, log} {
		_, _ = from.Seek(0, 0)
		n, err := from.Read(got)
		require.NoError(t, err)
		require.Equal(t, written+written, string(got[:n]))
	}
	n, err := reader.Read(got)
	require.NoError(t, err)
	require.Equal(t, written, string(got[:n]))
}

// A host that ends does not hang because nobody empties a pipe.
func TestOutputToAFullPipeGivesUp(t *testing.T) {
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	defer write.Close()
	start := time.Now()
	err = WriteFile(filepath.Join("/dev/fd", strconv.Itoa(int(write.Fd()))), []byte(strings.Repeat("x", 1<<20)))
	require.ErrorContains(t, err, "timeout")
	require.Less(t, time.Since(start), 5*streamPatience)
}

func TestOutputOnAFullDiskNamesTheFile(t *testing.T) {
	err := WriteFile("/dev/full", []byte(written))
	require.EqualError(t, err, "/dev/full: no space left on device")
	var before syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 16, Max: before.Max}))
	defer func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before)) }()
	path := filepath.Join(t.TempDir(), "stats.json")
	require.EqualError(t, WriteFile(path, make([]byte, 1<<17)), path+": file too large")
	_, err = os.Stat(path)
	require.True(t, os.IsNotExist(err))
}

func TestProcessNumberInAFileName(t *testing.T) {
	require.Equal(t, "/tmp/"+strconv.Itoa(os.Getpid())+".json", ExpandPID("/tmp/%p.json"))
	require.Equal(t, "/tmp/stats.json", ExpandPID("/tmp/stats.json"))
}
