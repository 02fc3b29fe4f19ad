/* Measures a file system from within a guest: each operation prints its nanoseconds.
 *
 *   files OPERATION DIRECTORY    once
 *   files loop                   one "OPERATION DIRECTORY" a line, on a terminal
 *
 * Operations make what they need before the clock starts, and leave it for the next time. An
 * answer is a line that begins with '='; anything else on the terminal is the kernel's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, PAGE = 4096, SIZE = 64, READS = 1000, WRITES = 1000, FILES = 1000 };

static char block[BLOCK];
static uint64_t began;

static int failed(const char *what)
{
	printf("=failed %s: %s\n", what, strerror(errno));
	fflush(stdout);
	return 1;
}

static void start(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	began = time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int done(void)
{
	uint64_t from = began;
	start();
	printf("=%llu\n", (unsigned long long)(began - from));
	fflush(stdout);
	return 0;
}

static uint32_t next(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

/* A file of SIZE MiB, of which nothing is in the guest's memory. */
static int whole(void)
{
	struct stat found;
	int fd = open("large", O_RDWR | O_CREAT, 0644);
	if (fd < 0 || fstat(fd, &found) < 0)
		return -1;
	if (found.st_size != (off_t)SIZE * BLOCK) {
		for (int i = 0; i < SIZE; i++)
			if (pwrite(fd, block, BLOCK, (off_t)i * BLOCK) != BLOCK)
				return -1;
	}
	if (fsync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		return -1;
	return fd;
}

static int write_all(void)
{
	unlink("written");
	start();
	int fd = open("written", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0)
		return failed("create");
	for (int i = 0; i < SIZE; i++)
		if (write(fd, block, BLOCK) != BLOCK)
			return failed("write");
	if (fsync(fd) < 0 || close(fd) < 0)
		return failed("sync");
	return done();
}

static int read_all(void)
{
	int fd = whole();
	if (fd < 0)
		return failed("prepare");
	start();
	for (int i = 0; i < SIZE; i++)
		for (int at = 0; at < BLOCK;) {
			ssize_t got = read(fd, block + at, BLOCK - at);
			if (got <= 0)
				return failed("read");
			at += got;
		}
	close(fd);
	return done();
}

static int random_pages(int out)
{
	int fd = whole();
	uint32_t state = 1;
	if (fd < 0)
		return failed("prepare");
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	start();
	for (int i = 0; i < (out ? WRITES : READS); i++) {
		off_t at = (off_t)(next(&state) % (SIZE * (BLOCK / PAGE))) * PAGE;
		ssize_t moved = out ? pwrite(fd, block, PAGE, at) : pread(fd, block, PAGE, at);
		if (moved != PAGE)
			return failed(out ? "write a page" : "read a page");
	}
	if (out && fsync(fd) < 0)
		return failed("sync");
	close(fd);
	return done();
}

static int many_files(void)
{
	char name[32];
	struct stat found;
	if (mkdir("many", 0755) < 0 && errno != EEXIST)
		return failed("mkdir");
	start();
	for (int i = 0; i < FILES; i++) {
		sprintf(name, "many/%d", i);
		int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
		if (fd < 0)
			return failed("create");
		close(fd);
	}
	for (int i = 0; i < FILES; i++) {
		sprintf(name, "many/%d", i);
		if (stat(name, &found) < 0)
			return failed("stat");
	}
	for (int i = 0; i < FILES; i++) {
		sprintf(name, "many/%d", i);
		if (unlink(name) < 0)
			return failed("unlink");
	}
	return done();
}

/* Whether a command of a shell went well. */
static int shell(const char *command)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		int null = open("/dev/null", O_RDWR);
		dup2(null, 0);
		dup2(null, 1);
		setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
		setenv("HOME", "/", 1);
		setenv("GIT_CONFIG_COUNT", "1", 1);
		setenv("GIT_CONFIG_KEY_0", "safe.directory", 1);
		setenv("GIT_CONFIG_VALUE_0", "*", 1);
		execl("/bin/sh", "sh", "-c", command, NULL);
		_exit(127);
	}
	errno = 0;
	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

static int unpack(void)
{
	if (!shell("rm -rf tree && mkdir tree && sync -f ."))
		return failed("make place");
	start();
	if (!shell("tar -xf /tree.tar -C tree"))
		return failed("tar");
	return done();
}

static int git(void)
{
	if (access("repository/ready", F_OK) < 0 &&
	    !shell("rm -rf repository && mkdir repository && cd repository && "
		   "tar -xf /tree.tar && git init -q && git add -A && "
		   "git -c user.name=x -c user.email=x@x commit -qm x && "
		   "echo ready >>.git/info/exclude && touch ready && sleep 1 && git status -s"))
		return failed("make a repository");
	start();
	if (!shell("cd repository && test -z \"$(git status --short)\""))
		return failed("git");
	return done();
}

static int run(const char *operation, const char *directory)
{
	if (chdir(directory) < 0)
		return failed(directory);
	if (!strcmp(operation, "write"))
		return write_all();
	if (!strcmp(operation, "read"))
		return read_all();
	if (!strcmp(operation, "random-read"))
		return random_pages(0);
	if (!strcmp(operation, "random-write"))
		return random_pages(1);
	if (!strcmp(operation, "many"))
		return many_files();
	if (!strcmp(operation, "unpack"))
		return unpack();
	if (!strcmp(operation, "git"))
		return git();
	errno = EINVAL;
	return failed(operation);
}

static int loop(void)
{
	char line[256], operation[32], directory[128];
	struct termios raw;
	if (tcgetattr(0, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(0, TCSANOW, &raw);
	}
	printf("=ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin))
		if (sscanf(line, "%31s %127s", operation, directory) == 2)
			run(operation, directory);
	return 0;
}

int main(int argc, char **argv)
{
	memset(block, 0x5a, sizeof block);
	if (argc == 2 && !strcmp(argv[1], "loop"))
		return loop();
	if (argc == 3)
		return run(argv[1], argv[2]);
	fprintf(stderr, "files OPERATION DIRECTORY, or files loop\n");
	return 2;
}
