package blockdev_test

import (
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func openImage(t *testing.T, fs vfs.FS, path string, sizeBytes int64, thick bool) blockdev.Device {
	img, err := blockdev.CreateImage(fs, path, sizeBytes, thick)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func TestConformance(t *testing.T) {
	blockdevtest.Run(t, "mem", func(_ *testing.T, size int64) blockdev.Device { return blockdevtest.NewMemDevice(size) })
	for name, thick := range map[string]bool{"thin": false, "thick": true} {
		blockdevtest.Run(t, "image in memory, "+name, func(t *testing.T, size int64) blockdev.Device {
			return openImage(t, vfs.NewMem(), "/image", size, thick)
		})
		blockdevtest.Run(t, "image, "+name, func(t *testing.T, size int64) blockdev.Device {
			return openImage(t, vfs.OS, filepath.Join(t.TempDir(), "image"), size, thick)
		})
	}
}

func TestLoopConformance(t *testing.T) {
	testenv.RequireLoop(t)
	for name, direct := range map[string]bool{"buffered": false, "direct": true} {
		blockdevtest.Run(t, name, func(t *testing.T, size int64) blockdev.Device {
			path := filepath.Join(t.TempDir(), "image")
			openImage(t, vfs.OS, path, size, false)
			devPath, err := blockdev.AttachLoop(blockdev.LoopConfig{
				BackingPath: path, SizeLimitBytes: size, BlockSizeBytes: 4096, DirectIO: direct})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := blockdev.DetachLoopOf(devPath, path); err != nil {
					t.Error(err)
				}
			})
			d, err := blockdev.OpenLoopDevice(devPath)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			return d
		}, blockdevtest.Options{ClearGranularityBytes: 4096, RandomOps: 500})
	}
}
