package vfs

// SetCapacity limits what files may allocate together to a number of bytes, in pages of 4 KiB; 0 is no limit.
// Allocating more fails with ENOSPC; writing to space that is allocated or preallocated never does. Directories take no
// space. A limit below what is allocated takes nothing away.
func (m *MemFS) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacityPages = (bytes + pageBytes - 1) / pageBytes
}

// SetInodes limits how many files and directories there can be together, the root included; 0 is no limit. Making
// another one fails with ENOSPC. A limit below what there is takes nothing away.
func (m *MemFS) SetInodes(limit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inodeLimit = limit
}

// Exhaust makes the file system full: it has not a byte and not an inode more than what is in use now.
func (m *MemFS) Exhaust() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacityPages, m.inodeLimit = max(m.pages, 1), m.inodes
}

// SetReflink says whether files can be cloned. A clone takes as much space here as its origin: nothing is shared in the
// reckoning.
func (m *MemFS) SetReflink(can bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reflink = can
}

// unlimitedBytes is what a file system without a limit reports as its size.
const unlimitedBytes = 1 << 50

// Space implements SpaceReporter.
func (m *MemFS) Space(name string) (totalBytes, availableBytes int64, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if _, err := m.lookup(name); err != nil {
		return 0, 0, pathError("statfs", name, err)
	}
	totalBytes = m.capacityPages * pageBytes
	if m.capacityPages == 0 {
		totalBytes = unlimitedBytes
	}
	return totalBytes, max(totalBytes-m.pages*pageBytes, 0), nil
}

// Inodes implements InodeReporter.
func (m *MemFS) Inodes(name string) (total, free int64, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if _, err := m.lookup(name); err != nil {
		return 0, 0, pathError("statfs", name, err)
	}
	if m.inodeLimit == 0 {
		return 0, 0, nil
	}
	return m.inodeLimit, max(m.inodeLimit-m.inodes, 0), nil
}

// MayShareBlocks implements SharedSpaceReporter.
func (m *MemFS) MayShareBlocks(string) bool { return false }

// AllocatedTogether implements SharedSpaceReporter. Nothing is shared here.
func (m *MemFS) AllocatedTogether(names []string) (int64, error) { return sumAllocated(m, names) }
