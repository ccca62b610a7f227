/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page of metrics in Prometheus' text format over HTTP/1.0 on a Unix socket of its own. Any GET gets the page,
 * whatever its path; anything else gets 405. A scraper has two seconds and 2 KiB for its query, and the answer is one
 * send that fits the socket's buffer, so nobody can hold the device up. A library was rejected: it would bring threads
 * or an event loop of its own for one fixed answer.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "device/serve.h"

#define QUERY_NS 2000000000u

struct page {
    char *text;
    size_t n, room;
};

static void NKV_PRINTF(2, 3) put(struct page *page, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(page->text + page->n, page->room - page->n, format, args);
    va_end(args);
    page->n += n > 0 ? (size_t)n : 0;
    if (page->n >= page->room)
        page->n = page->room - 1;
}

static void put_header(struct page *page, const char *name, const char *type, const char *help)
{
    put(page, "# HELP nearkv_pnm_%s %s\n# TYPE nearkv_pnm_%s %s\n", name, help, name, type);
}

static void put_metric(struct page *page, const char *name, const char *type, const char *help, uint64_t value)
{
    put_header(page, name, type, help);
    put(page, "nearkv_pnm_%s %" PRIu64 "\n", name, value);
}

static void put_device(struct page *page, const struct nkv_serve_stat *stat)
{
    put_header(page, "info", "gauge", "The device.");
    put(page, "nearkv_pnm_info{name=\"%s\"} 1\n", stat->name);
    put_metric(page, "capacity_bytes", "gauge", "Room for pages and digests.", stat->capacity_bytes);
    put_metric(page, "used_bytes", "gauge", "Held or reserved by sequences.", stat->used_bytes);
    put_metric(page, "resident_bytes", "gauge", "Pages and digests that hold data.", stat->resident_bytes);
    put_metric(page, "free_pages", "gauge", "Pages that can still be reserved.", stat->n_free_pages);
    put_metric(page, "total_pages", "gauge", "Pages that fit the empty device.", stat->n_total_pages);
    put_metric(page, "clients", "gauge", "Processes attached.", stat->n_clients);
    put_metric(page, "absent_clients", "gauge", "Clients of before a restart that may come back.", stat->n_absent);
    put_metric(page, "sequences", "gauge", "Sequences open.", stat->n_sequences);
    put_metric(page, "queue_depth", "gauge", "Commands that wait.", stat->queue_depth);
    put_metric(page, "commands_total", "counter", "Commands run.", stat->n_commands);
    put_header(page, "busy_seconds_total", "counter", "Time spent in commands.");
    put(page, "nearkv_pnm_busy_seconds_total %.9f\n", (double)stat->busy_ns * 1e-9);
    put_metric(page, "read_bytes_total", "counter", "Pages and digests that commands read.", stat->read_bytes);
    put_metric(page, "written_bytes_total", "counter", "Keys, values and pages that commands wrote.",
               stat->written_bytes);
}

static void put_clients(struct page *page, const struct nkv_serve_stat *stat, const char *name, const char *type,
                        const char *help, size_t offset)
{
    uint64_t value;

    put_header(page, name, type, help);
    for (uint32_t i = 0; i < stat->n_clients; i++) {
        const struct nkv_serve_client *client = &stat->clients[i];

        memcpy(&value, (const char *)client + offset, sizeof value);
        put(page, "nearkv_pnm_%s{client=\"%u\",pid=\"%d\"} %" PRIu64 "\n", name, client->number, client->pid, value);
    }
}

static void answer(struct nkv_serve *serve, struct serve_scraper *scraper)
{
    static const char head[] =
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n";
    struct page page = {serve->page, 0, sizeof serve->page};
    struct nkv_serve_stat stat;

    if (strncmp(scraper->query, "GET ", 4) != 0) {
        put(&page, "HTTP/1.0 405 Method Not Allowed\r\nAllow: GET\r\nConnection: close\r\n\r\n");
    } else {
        nkv_serve_fill_stat(serve, &stat);
        put(&page, "%s", head);
        put_device(&page, &stat);
        put_clients(&page, &stat, "client_used_bytes", "gauge", "Held or reserved by one client's sequences.",
                    offsetof(struct nkv_serve_client, used_bytes));
        put_clients(&page, &stat, "client_commands_total", "counter", "Commands of one client.",
                    offsetof(struct nkv_serve_client, n_commands));
        put_clients(&page, &stat, "client_read_bytes_total", "counter", "Read by one client's commands.",
                    offsetof(struct nkv_serve_client, read_bytes));
        put_clients(&page, &stat, "client_written_bytes_total", "counter", "Written by one client's commands.",
                    offsetof(struct nkv_serve_client, written_bytes));
    }
    (void)send(scraper->fd, page.text, page.n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void hang_up(struct serve_scraper *scraper)
{
    close(scraper->fd);
    scraper->fd = -1;
}

void nkv_serve_metrics_accept(struct nkv_serve *serve)
{
    int fd = accept4(serve->metrics.fd, NULL, NULL, SOCK_CLOEXEC);

    for (uint32_t i = 0; fd >= 0 && i < NKV_SERVE_SCRAPERS; i++)
        if (serve->scrapers[i].fd < 0) {
            serve->scrapers[i] = (struct serve_scraper){.fd = fd, .deadline_ns = nkv_now_ns() + QUERY_NS};
            return;
        }
    if (fd >= 0)
        close(fd);
}

void nkv_serve_metrics_read(struct nkv_serve *serve, struct serve_scraper *scraper)
{
    size_t room = sizeof scraper->query - 1 - scraper->n_bytes;
    ssize_t n = recv(scraper->fd, scraper->query + scraper->n_bytes, room, MSG_DONTWAIT);

    if (n > 0) {
        scraper->n_bytes += (uint32_t)n;
        scraper->query[scraper->n_bytes] = '\0';
        if (strstr(scraper->query, "\r\n\r\n") || strstr(scraper->query, "\n\n"))
            answer(serve, scraper);
        else if ((size_t)n < room)
            return; /* there is more to come */
    }
    hang_up(scraper);
}

bool nkv_serve_metrics_expire(struct nkv_serve *serve, uint64_t now_ns)
{
    bool any = false;

    for (uint32_t i = 0; i < NKV_SERVE_SCRAPERS; i++) {
        if (serve->scrapers[i].fd >= 0 && now_ns > serve->scrapers[i].deadline_ns)
            hang_up(&serve->scrapers[i]);
        any |= serve->scrapers[i].fd >= 0;
    }
    return any;
}

void nkv_serve_metrics_close(struct nkv_serve *serve)
{
    for (uint32_t i = 0; i < NKV_SERVE_SCRAPERS; i++)
        if (serve->scrapers[i].fd >= 0)
            hang_up(&serve->scrapers[i]);
}
