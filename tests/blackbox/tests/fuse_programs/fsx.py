# Random operations on a published file, and the same on bytes in memory, as fsx does. Arguments: the directory, the
# file, `content` or `memory` (whose size is fixed), the first seed and how many.
import errno, mmap, os, random, sys

os.chdir(sys.argv[1])
name, kind, first, count = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
MOST = 70_000
resizes = kind == 'content'


def fails(wanted, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == wanted, error
    else:
        raise AssertionError(f'{call.__name__}{arguments} must fail with {errno.errorcode[wanted]}')


class Run:
    def __init__(self):
        self.fd = os.open(name, os.O_RDWR)
        if resizes:
            os.ftruncate(self.fd, 0)
            self.model = bytearray()
        else:
            self.model = bytearray(os.fstat(self.fd).st_size)
            os.pwrite(self.fd, bytes(self.model), 0)
        self.mapped = None

    def range(self):
        at = random.randrange(len(self.model) + (9000 if resizes else 1))
        size = random.choice([0, 1, random.randrange(200), random.randrange(20_000)])
        return at, size if resizes else min(size, len(self.model) - at)

    def put(self, at, data):
        if data:
            self.model.extend(bytes(max(0, at + len(data) - len(self.model))))
            self.model[at:at + len(data)] = data

    def read(self):
        at, size = self.range()
        assert os.pread(self.fd, size, at) == self.model[at:at + size]

    def write(self):
        at, size = self.range()
        at = min(at, MOST - size) if resizes else at
        data = random.randbytes(size)
        assert os.pwrite(self.fd, data, at) == size
        self.put(at, data)

    def vectors(self):
        at, size = self.range()
        parts = [bytearray(size // 3), bytearray(size - size // 3)]
        got = os.preadv(self.fd, parts, at)
        assert b''.join(parts)[:got] == self.model[at:at + size] and got == len(self.model[at:at + size])

    def append(self):
        data = random.randbytes(random.randrange(1, 3000))
        with open(name, 'ab', buffering=0) as file:
            if not resizes:
                return fails(errno.ENOSPC, file.write, data)
            if len(self.model) + len(data) > MOST:
                return
            assert file.write(data) == len(data)
            assert file.tell() == len(self.model) + len(data)
        self.put(len(self.model), data)

    def truncate(self):
        size = random.randrange(MOST)
        target = random.choice([self.fd, name])
        if not resizes:
            if size != len(self.model):
                fails(errno.EPERM, os.truncate, target, size or 1)
            return
        os.truncate(target, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def reopen(self):
        if self.mapped:
            self.mapped.close()
            self.mapped = None
        os.close(self.fd)
        flags = random.choice([0, 0, os.O_TRUNC])
        self.fd = os.open(name, os.O_RDWR | flags)
        if flags and resizes:
            self.model.clear()

    def whole(self):
        with open(name, 'rb') as file:
            assert file.read() == self.model

    def sizes(self):
        assert os.fstat(self.fd).st_size == os.stat(name).st_size == len(self.model)
        assert os.lseek(self.fd, 0, os.SEEK_END) == len(self.model)

    def map(self):
        '''A mapping that stays over what comes; None of its pages is beyond the end when it is used.'''
        if not self.model:
            return
        if self.mapped:
            self.mapped.close()
        try:
            self.mapped = mmap.mmap(self.fd, len(self.model))
        except OSError as error:
            # Files that bypass the page cache can be mapped since Linux 6.6.
            assert error.errno == errno.ENODEV, error

    def mapped_read(self):
        if self.mapped:
            most = min(len(self.mapped), len(self.model))
            at, size = self.range()
            at, end = min(at, most), min(at + size, most)
            assert self.mapped[at:end] == self.model[at:end], 'mapped'

    def mapped_write(self):
        if self.mapped:
            most = min(len(self.mapped), len(self.model))
            at, size = self.range()
            at, end = min(at, most), min(at + size, most)
            data = random.randbytes(end - at)
            self.mapped[at:end] = data
            if random.random() < 0.5:
                self.mapped.flush()
            self.put(at, data)


STEPS = [Run.read, Run.write, Run.write, Run.vectors, Run.append, Run.truncate, Run.reopen, Run.whole, Run.sizes,
         Run.map, Run.mapped_read, Run.mapped_write]
for seed in range(first, first + count):
    random.seed(seed)
    run, done = Run(), []
    try:
        for _ in range(80):
            step = random.choice(STEPS)
            done.append(step.__name__)
            step(run)
        run.whole()
    except AssertionError as error:
        sys.exit(f'{kind}, seed {seed}, after {" ".join(done)}: {error}')
    if run.mapped:
        run.mapped.close()
    os.close(run.fd)
print(count, 'seeds')
