/* Takes the place of container-jailer in a benchmark: the same command line and the same answers,
 * and no jail. It stays in the namespaces, the uid and the root of whoever calls it, keeps all
 * capabilities and sets no limit, no landlock and no filter; it takes QEMU's own -sandbox away, too.
 *
 * What remains is what the program needs to run at all: shared files at their numbers, each on a
 * read-only mount, since the helper takes no other; a tap; a listener for two calls of a QEMU that
 * maps a template, which forbids nothing; the size of pages; and the end with its starter. Root's,
 * for that mount.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

enum { MOST = 1024 };

static struct { const char *source, *target; } binds[MOST];
static struct { int number; const char *source; } shares[MOST];
static char *environment[MOST + 1], *command[MOST + 1];
static int bind_count, share_count, environment_count, command_count;
static int status = 2, sends = -1, tap = -1, notify = -1, small_pages, checks;

static void failed(const char *what)
{
	dprintf(status, "error open-jail: %s: %m\n", what);
	_exit(2);
}

static int room(int count)
{
	if (count >= MOST)
		failed("too many arguments");
	return count;
}

/* The words of the real one; what only confines is read and left. */
static void parse(char **word)
{
	static const char *const unused[] = { "--parent", "--host-uid", "--host-gid", "--keep",
					      "--limit", "--allow-missing" };
	for (; *word && strcmp(*word, "--"); word++) {
		const char *option = *word;
		if (!strcmp(option, "--check")) {
			checks = 1;
			continue;
		}
		if (!strcmp(option, "--small-pages")) {
			small_pages = 1;
			continue;
		}
		if (!strcmp(option, "--kvm"))
			continue;
		char *value = *++word;
		if (!value)
			failed(option);
		if (!strcmp(option, "--status-fd")) {
			status = atoi(value);
		} else if (!strcmp(option, "--send")) {
			sends = atoi(value);
		} else if (!strcmp(option, "--tap")) {
			tap = atoi(value);
		} else if (!strcmp(option, "--notify")) {
			notify = atoi(value);
		} else if (!strcmp(option, "--env")) {
			environment[room(environment_count++)] = value;
		} else if (!strcmp(option, "--bind") && word[1]) {
			binds[room(bind_count)].source = value;
			binds[bind_count++].target = *++word;
		} else if (!strcmp(option, "--share") && word[1]) {
			shares[room(share_count)].number = atoi(value);
			shares[share_count++].source = *++word;
		} else {
			size_t known = 0;
			while (known < sizeof unused / sizeof *unused && strcmp(option, unused[known]))
				known++;
			if (known == sizeof unused / sizeof *unused)
				failed(option);
		}
	}
	for (; *word; word++)
		if (strcmp(*word, "--") || command_count > 0)
			command[room(command_count++)] = *word;
}

/* A path that is elsewhere in a jail, as it is here: up to its end or to a comma. */
static char *outside(char *word)
{
	for (int i = 0; i < bind_count; i++) {
		size_t length = strlen(binds[i].target);
		char *path;
		if (!strcmp(binds[i].source, binds[i].target) || strncmp(word, binds[i].target, length))
			continue;
		if (word[length] && word[length] != ',')
			continue;
		if (asprintf(&path, "%s%s", binds[i].source, word + length) < 0)
			failed("memory");
		return path;
	}
	return word;
}

/* Without QEMU's filter, and with the firmware where QEMU itself looks for it. */
static void take_filters_away(void)
{
	int kept = 0;
	for (int i = 0; i < command_count; i++) {
		if ((!strcmp(command[i], "-sandbox") || !strcmp(command[i], "-L")) &&
		    i + 1 < command_count)
			i++;
		else
			command[kept++] = outside(command[i]);
	}
	command[kept] = NULL;
	command_count = kept;
}

static void place(int from, int to)
{
	if (from < 0 || dup2(from, to) < 0)
		failed("descriptors");
	if (from != to && from > 2)
		close(from);
}

/* On a detached, read-only clone of its mount. */
static int open_shared(const char *path)
{
	struct mount_attr attributes = { .attr_set = MOUNT_ATTR_RDONLY };
	char link[32];
	int tree = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes,
				sizeof attributes) < 0)
		failed(path);
	snprintf(link, sizeof link, "/proc/self/fd/%d", tree);
	int file = open(link, O_RDONLY | O_CLOEXEC);
	close(tree);
	return file;
}

static void make_tap(void)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (device < 0 || any < 0 || ioctl(device, TUNSETIFF, &request) < 0)
		failed("tap");
	request.ifr_flags = IFF_UP;
	if (ioctl(any, SIOCSIFFLAGS, &request) < 0)
		failed("tap");
	close(any);
	place(device, tap);
}

static void send_all(const int *files, int count, int over)
{
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int) * 16)]; } space;
	struct iovec data = { "x", 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &space };
	if (count > 16)
		failed("too many descriptors to send");
	message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
	memset(&space, 0, sizeof space);
	space.header.cmsg_level = SOL_SOCKET;
	space.header.cmsg_type = SCM_RIGHTS;
	space.header.cmsg_len = CMSG_LEN(sizeof(int) * count);
	memcpy(CMSG_DATA(&space.header), files, sizeof(int) * count);
	if (sendmsg(over, &message, MSG_NOSIGNAL) < 0)
		failed("send");
}

/* Asks about fallocate, and about openat for reading and writing. */
static void listen_to_calls(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 7),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, O_ACCMODE),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, O_RDWR, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof program / sizeof *program, program };
	int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			       SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
	if (listener < 0)
		failed("listener");
	send_all(&listener, 1, notify);
	close(listener);
	close(notify);
}

int main(int count, char **words)
{
	int files[MOST];
	(void)count;
	parse(words + 1);
	if (checks)
		return 0;
	/* So that nothing that is opened now lands on one of these. */
	for (int i = 0; i < share_count; i++)
		place(0, shares[i].number);
	if (tap >= 0)
		place(0, tap);
	for (int i = 0; i < share_count; i++) {
		place(open_shared(shares[i].source), shares[i].number);
		files[i] = shares[i].number;
	}
	if (sends >= 0) {
		send_all(files, share_count, sends);
		return 0;
	}
	if (command_count == 0)
		failed("no program");
	if (tap >= 0)
		make_tap();
	take_filters_away();
	/* A child of the starter, as QEMU is behind the real one. */
	pid_t child = syscall(SYS_clone, SIGCHLD | CLONE_PARENT, 0, 0, 0, 0);
	if (child < 0)
		failed("clone");
	if (child > 0) {
		dprintf(status, "pid %d\n", child);
		return 0;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (small_pages)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (status > 2)
		fcntl(status, F_SETFD, FD_CLOEXEC);
	if (notify >= 0)
		listen_to_calls();
	execve(command[0], command, environment);
	failed(command[0]);
	return 2;
}
