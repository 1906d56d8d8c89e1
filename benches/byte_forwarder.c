/* The floor that benches/compare measures against: one thread that passes bytes between each client and a connection of its
 * own to the server, and understands none of them. What it costs, the kernel costs.
 *
 *     byte_forwarder LISTEN SERVER     each a port on 127.0.0.1, or the path of a unix socket
 *
 * Per message it receives and sends once; one epoll_wait serves all who are ready. Sockets are edge-triggered, so nothing is
 * armed or disarmed for it. What the other side does not take is kept, and no more is read until it has.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, EVENTS = 256 };

struct link;

/* One socket of a link, and the bytes that it did not take yet. */
struct side {
    int fd;
    int unread; /* There may be more to read: its last edge was not used up. */
    struct link *link;
    struct side *other;
    char *kept;
    size_t kept_length;
};

struct link {
    struct side client, server;
    int closed;
    struct link *next_closed;
};

static char buffer[BUFFER];
static int poller;
static struct link *closed_links;

static void stop(const char *what) {
    fprintf(stderr, "byte_forwarder: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int socket_at(const char *address, int listening) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *where = (struct sockaddr *)&port;
    socklen_t length = sizeof port;
    int on = 1, is_path = address[0] == '/';
    if (is_path) {
        strncpy(path.sun_path, address, sizeof path.sun_path - 1);
        where = (struct sockaddr *)&path;
        length = sizeof path;
    } else {
        port.sin_port = htons((uint16_t)atoi(address));
    }
    int fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (!is_path) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (listening && !is_path) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listening ? bind(fd, where, length) || listen(fd, 4096) : connect(fd, where, length)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Freed after the events at hand, some of which may still name it. */
static void close_link(struct link *link) {
    if (link->closed) return;
    link->closed = 1;
    close(link->client.fd);
    close(link->server.fd);
    link->next_closed = closed_links;
    closed_links = link;
}

static void free_closed_links(void) {
    while (closed_links) {
        struct link *link = closed_links;
        closed_links = link->next_closed;
        free(link->client.kept);
        free(link->server.kept);
        free(link);
    }
}

static void watch(struct side *side, int operation, uint32_t more) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET | more, .data.ptr = side};
    if (epoll_ctl(poller, operation, side->fd, &event)) stop("epoll_ctl");
}

/* Sends, and keeps the rest. To hear of room always would wake for every message that a unix socket's peer has read. */
static void give(struct side *to, const char *bytes, size_t length) {
    int kept_before = bytes == to->kept;
    ssize_t sent = send(to->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return close_link(to->link);
    if (sent < 0) sent = 0;
    to->kept_length = length - (size_t)sent;
    if (to->kept_length) {
        if (!to->kept && !(to->kept = malloc(BUFFER))) stop("memory");
        memmove(to->kept, bytes + sent, to->kept_length);
    }
    if ((to->kept_length != 0) != kept_before) watch(to, EPOLL_CTL_MOD, to->kept_length ? EPOLLOUT : 0);
}

/* A short read has emptied the socket (epoll(7), "Questions and answers"), so its next bytes raise an edge of their own. */
static void pump(struct side *from) {
    while (from->unread && !from->other->kept_length && !from->link->closed) {
        ssize_t length = recv(from->fd, buffer, BUFFER, 0);
        if (length == 0 || (length < 0 && errno != EAGAIN)) return close_link(from->link);
        if (length < 0) {
            from->unread = 0;
            return;
        }
        if (length < BUFFER && from->unread == 1) from->unread = 0;
        give(from->other, buffer, (size_t)length);
    }
}

static void on_event(struct side *side, uint32_t events) {
    if (side->link->closed) return;
    if (events & EPOLLOUT && side->kept_length) {
        give(side, side->kept, side->kept_length);
        pump(side->other);
    }
    /* Behind the last bytes is the end, which raises no edge any more: read until it is met. */
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) side->unread = 2;
    else if (events & EPOLLIN && !side->unread) side->unread = 1;
    pump(side);
}

static void accept_one(int listener, const char *server) {
    int on = 1, client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    int upstream = socket_at(server, 0);
    struct link *link = upstream < 0 ? NULL : calloc(1, sizeof *link);
    if (!link) {
        close(client);
        return;
    }
    /* Connected by a blocking call, which on one machine returns at once. */
    if (fcntl(upstream, F_SETFL, O_NONBLOCK)) stop("fcntl");
    link->client = (struct side){.fd = client, .link = link, .other = &link->server};
    link->server = (struct side){.fd = upstream, .link = link, .other = &link->client};
    watch(&link->client, EPOLL_CTL_ADD, 0);
    watch(&link->server, EPOLL_CTL_ADD, 0);
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "byte_forwarder LISTEN SERVER\n");
        return 2;
    }
    int listener = socket_at(arguments[1], 1);
    if (listener < 0) stop(arguments[1]);
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) stop("epoll");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[EVENTS];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) stop("epoll_ctl");
    for (;;) {
        int events = epoll_wait(poller, ready, EVENTS, -1);
        if (events < 0 && errno != EINTR) stop("epoll_wait");
        for (int index = 0; index < events; index++) {
            struct side *side = ready[index].data.ptr;
            if (side) on_event(side, ready[index].events);
            else accept_one(listener, arguments[2]);
        }
        free_closed_links();
    }
}
