/* Measures a transfer over TCP, in a guest and on the host alike.
 *
 *   transfer serve PORT                          answers, one connection after another
 *   transfer send ADDRESS PORT MIB               sends; prints nanoseconds
 *   transfer relay ADDRESS PORT MIB TO TO_PORT   has ADDRESS send to TO; prints nanoseconds
 *
 * A connection begins with a header: how much will come, and where the server is to send as
 * much itself instead (an address of zeros: nowhere). The one that receives says how long it
 * took, from the header to the last byte. IPv4; both sides have one byte order.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct header {
	uint64_t bytes;
	uint32_t address;
	uint32_t port;
};

static char block[128 << 10];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int all(int fd, void *bytes, size_t length, int out)
{
	char *at = bytes;
	while (length > 0) {
		ssize_t done = out ? write(fd, at, length) : read(fd, at, length);
		if (done <= 0)
			return -1;
		at += done;
		length -= done;
	}
	return 0;
}

static int dial(uint32_t address, uint32_t port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	to.sin_addr.s_addr = address;
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
		perror("connect");
		return -1;
	}
	return fd;
}

/* Sends a header and, where it asks for it, the bytes; what the other side says of it. */
static uint64_t ask(uint32_t address, uint32_t port, struct header header)
{
	uint64_t answer = 0;
	int fd = dial(address, port);
	if (fd < 0)
		return 0;
	if (all(fd, &header, sizeof header, 1) == 0) {
		uint64_t left = header.address ? 0 : header.bytes;
		while (left > 0) {
			size_t part = left < sizeof block ? left : sizeof block;
			if (all(fd, block, part, 1) < 0)
				break;
			left -= part;
		}
		if (all(fd, &answer, sizeof answer, 0) < 0)
			answer = 0;
	}
	close(fd);
	return answer;
}

static uint64_t answer(int fd)
{
	struct header header;
	if (all(fd, &header, sizeof header, 0) < 0)
		return 0;
	if (header.address) {
		struct header there = { .bytes = header.bytes };
		return ask(header.address, header.port, there);
	}
	uint64_t begin = now();
	while (header.bytes > 0) {
		size_t part = header.bytes < sizeof block ? header.bytes : sizeof block;
		ssize_t got = read(fd, block, part);
		if (got <= 0)
			return 0;
		header.bytes -= got;
	}
	return now() - begin;
}

static void serve(uint32_t port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 16) < 0)
		die("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			die("accept");
		uint64_t took = answer(fd);
		all(fd, &took, sizeof took, 1);
		close(fd);
	}
}

int main(int count, char **words)
{
	signal(SIGPIPE, SIG_IGN);
	if (count == 3 && strcmp(words[1], "serve") == 0)
		serve(atoi(words[2]));
	if (count != 5 && count != 7)
		return 2;
	struct header header = { .bytes = strtoull(words[4], NULL, 10) << 20 };
	if (count == 7) {
		header.address = inet_addr(words[5]);
		header.port = atoi(words[6]);
	}
	uint64_t took = ask(inet_addr(words[2]), atoi(words[3]), header);
	printf("%llu\n", (unsigned long long)took);
	return took == 0;
}
