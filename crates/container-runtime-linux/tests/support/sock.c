/* A program of a container that speaks over unix sockets:
 *   sock echo PATH      listens, and answers each connection with what it says, at its end
 *   sock talk PATH HEX  connects, sends these bytes, and prints the answer as HEX
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char buffer[16 << 20];

static size_t all(int fd) {
    size_t have = 0;
    ssize_t n;
    while (have < sizeof buffer && (n = read(fd, buffer + have, sizeof buffer - have)) > 0) have += n;
    return have;
}

static void out(int fd, size_t len) {
    for (size_t at = 0; at < len;) {
        ssize_t n = write(fd, buffer + at, len - at);
        if (n <= 0) exit(3);
        at += n;
    }
}

int main(int count, char **words) {
    if (count < 3) return 2;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, words[2], sizeof at.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (!strcmp(words[1], "echo")) {
        unlink(words[2]);
        if (bind(fd, (void *)&at, sizeof at) || listen(fd, 64)) return 1;
        puts("listening");
        fflush(stdout);
        for (;;) {
            int client = accept(fd, 0, 0);
            out(client, all(client));
            close(client);
        }
    }
    if (connect(fd, (void *)&at, sizeof at)) { perror("connect"); return 1; }
    size_t len = 0;
    for (char *hex = words[3]; hex[0] && hex[1]; hex += 2, len++) {
        unsigned byte;
        if (sscanf(hex, "%2x", &byte) != 1) return 2;
        buffer[len] = byte;
    }
    out(fd, len);
    shutdown(fd, SHUT_WR);
    len = all(fd);
    for (size_t i = 0; i < len; i++) printf("%02x", (unsigned char)buffer[i]);
    return 0;
}
