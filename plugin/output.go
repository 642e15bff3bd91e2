package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// alike is how many first bytes tell a file that the library wrote from anybody else's: those of the
// statistics and of a profile name their first field.
const alike = 10

// headCap is how many bytes are looked at to find them.
const headCap = 64

// streamPatience is how long a pipe that nobody empties is waited for.
const streamPatience = 2 * time.Second

// maxLinks is how many symbolic links are followed to an output file.
const maxLinks = 40

// ExpandPID puts the process's number in the place of each %p of a file name.
func ExpandPID(path string) string {
	return strings.ReplaceAll(path, "%p", strconv.Itoa(os.Getpid()))
}

// IsFolder tells whether a name is a folder's, links followed.
func IsFolder(path string) bool {
	about, err := os.Stat(path)
	return err == nil && about.IsDir()
}

// WriteFile puts text in a file, whole or not at all: a new file beside it takes its name. Only a file that is empty
// or begins like text is replaced; a symbolic link is followed to such a file and stays. Character devices, pipes and
// the process's open files (/dev/stdout) are written to. Anything else is an error that names path.
func WriteFile(path string, text []byte) error { return writeFile(path, text, false) }

// writeFile is WriteFile; with mine the folder is the library's, and so is any file in it that no link leads out to.
func writeFile(path string, text []byte, mine bool) error {
	err := place(path, text, mine)
	if err == nil {
		return nil
	}
	// What failed on the way has other names, which say nothing to anybody.
	var of *os.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &of):
		err = of.Err
	case errors.As(err, &link):
		err = link.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

func place(path string, text []byte, mine bool) error {
	target, about, linked, err := follow(path)
	switch {
	case err != nil:
		return err
	case about == nil: // a new file
		return replace(target, text, 0o644)
	case strings.HasPrefix(target, "/proc/"): // an open file, whatever it is: replaced, it would lose its reader
		return stream(target, text)
	case about.IsDir():
		return errors.New("is a folder: name a file in it")
	case about.Mode().IsRegular():
		if !mine || linked {
			if err := begins(target, text); err != nil {
				return err
			}
		}
		return replace(target, text, about.Mode().Perm())
	case about.Mode()&os.ModeNamedPipe != 0 || about.Mode()&os.ModeCharDevice != 0:
		return stream(target, text)
	}
	return errors.New("is neither a file nor a pipe nor a character device")
}

// follow finds what a name stands for, links followed; about is nil where there is nothing yet. A link that leads
// nowhere is an error: what it is for is not known.
func follow(path string) (target string, about os.FileInfo, linked bool, err error) {
	target = path
	for hop := range maxLinks {
		linked = hop > 0
		folder, err := filepath.EvalSymlinks(filepath.Dir(target))
		if err != nil {
			return "", nil, linked, err
		}
		target = filepath.Join(folder, filepath.Base(target))
		if strings.HasPrefix(target, "/proc/") {
			about, err = os.Stat(target)
			return target, about, linked, err
		}
		about, err = os.Lstat(target)
		switch {
		case os.IsNotExist(err) && linked:
			return "", nil, linked, fmt.Errorf("is a link to %s, which is not there", target)
		case os.IsNotExist(err):
			return target, nil, linked, nil
		case err != nil:
			return "", nil, linked, err
		case about.Mode()&os.ModeSymlink == 0:
			return target, about, linked, nil
		}
		to, err := os.Readlink(target)
		if err != nil {
			return "", nil, linked, err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(folder, to)
		}
		target = to
	}
	return "", nil, linked, syscall.ELOOP
}

// begins tells what is wrong with replacing a file by text: it begins otherwise, so somebody else wrote it. White
// space does not count, a person may have laid a profile out.
func begins(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, headCap))
	if err != nil {
		return err
	}
	if len(head) > 0 && !bytes.Equal(beginning(head), beginning(text)) {
		return errors.New("is there and was not written by this library: it is not replaced")
	}
	return nil
}

func beginning(text []byte) []byte {
	head := bytes.Join(bytes.Fields(text[:min(len(text), headCap)]), nil)
	return head[:min(len(head), alike)]
}

// replace gives a new file the name of an old one.
func replace(path string, text []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".lessismore-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if e := f.Chmod(mode); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// stream writes to what is not replaced. Nobody is waited for long: a host that ends would hang.
func stream(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_ = f.SetWriteDeadline(time.Now().Add(streamPatience)) // what has no deadline does not wait
	_, err = f.Write(text)
	return err
}
