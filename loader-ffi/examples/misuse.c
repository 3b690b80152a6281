/* Calls everything as it must not be called. Each mistake is a status; none is a crash.
 *
 *   ./misuse ENDPOINT URI
 *
 * Exit code 0 if every call answered what forebay.h says.
 */
#include <stdio.h>
#include <string.h>

#include "forebay.h"

static int mistakes;

static void expect(int line, int32_t status, int32_t expected)
{
    if (status != expected) {
        char text[512];
        fb_last_error(NULL, text, sizeof text);
        fprintf(stderr, "line %d: %d and not %d: %s\n", line, (int)status, (int)expected, text);
        mistakes++;
    }
}

#define EXPECT(call, expected) expect(__LINE__, (call), (expected))

static int32_t stop(void *context, const fb_tensor_info *tensor)
{
    *(uint64_t *)context += tensor->bytes;
    return 7;
}

/* A struct of a caller that is newer than the library. */
struct newer {
    fb_load_options options;
    uint64_t added;
};

int main(int argc, char **argv)
{
    fb_client *client = NULL;
    fb_load *load = NULL;
    fb_tensor *tensor = NULL;
    fb_tensor *held = NULL;
    fb_tensor_info info = {0};
    fb_report report = {0};
    fb_daemon_status daemon = {0};
    struct newer newer = {0};
    fb_load_options *options = &newer.options;
    uint64_t seen = 0;
    char text[8];
    if (argc != 3) {
        return 2;
    }

    /* NULL wherever a pointer goes. */
    EXPECT(fb_connect(NULL, &client), FB_INVALID_ARGUMENT);
    EXPECT(fb_connect(argv[1], NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_connect("\xff", &client), FB_INVALID_ARGUMENT);
    EXPECT(fb_connect("unix:///nowhere/forebay.sock", &client), FB_UNAVAILABLE);
    EXPECT(fb_close(NULL), FB_OK);
    EXPECT(fb_load_close(NULL), FB_OK);
    EXPECT(fb_tensor_release(NULL), FB_OK);
    EXPECT(fb_load_open(NULL, options, &load), FB_BAD_HANDLE);
    EXPECT(fb_load_next_tensor(NULL, &tensor), FB_BAD_HANDLE);
    EXPECT(fb_load_finish(NULL, NULL), FB_BAD_HANDLE);
    EXPECT(fb_tensor_get_info(NULL, &info), FB_BAD_HANDLE);
    EXPECT(fb_status(NULL, &daemon), FB_BAD_HANDLE);
    EXPECT((int32_t)fb_load_report_json(NULL, NULL, 0), 0);

    /* Structs of wrong sizes, of an older and of a newer caller. */
    EXPECT(fb_connect(argv[1], &client), FB_OK);
    EXPECT(fb_load_open(client, NULL, &load), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_open(client, options, &load), FB_INVALID_ARGUMENT);
    options->size = sizeof(size_t) - 1;
    EXPECT(fb_load_open(client, options, &load), FB_INVALID_ARGUMENT);
    options->size = sizeof newer;
    options->uri = argv[2];
    newer.added = 1;
    EXPECT(fb_load_open(client, options, &load), FB_INVALID_ARGUMENT);
    newer.added = 0;
    EXPECT(fb_load_open(client, options, NULL), FB_INVALID_ARGUMENT);
    options->lane = 9;
    EXPECT(fb_load_open(client, options, &load), FB_INVALID_ARGUMENT);
    options->lane = 0;
    options->tensor_count = 1;
    EXPECT(fb_load_open(client, options, &load), FB_INVALID_ARGUMENT);
    options->tensor_count = 0;
    EXPECT(fb_status(client, &daemon), FB_INVALID_ARGUMENT);
    daemon.size = sizeof daemon;
    EXPECT(fb_status(client, &daemon), FB_OK);
    if (daemon.ram_budget_bytes == 0 || daemon.size != sizeof daemon) {
        mistakes++;
    }
    EXPECT(fb_load_open(client, options, &load), FB_OK);
    EXPECT(fb_load_close(load), FB_OK);
    options->size = offsetof(fb_load_options, deadline_ms);
    EXPECT(fb_load_open(client, options, &load), FB_OK);

    /* Handles of the wrong kind, and what is still held. */
    EXPECT(fb_load_next_tensor((fb_load *)(void *)client, &tensor), FB_BAD_HANDLE);
    EXPECT(fb_load_next_tensor(load, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_next_tensor(load, &held), FB_OK);
    EXPECT(fb_load_next_object(load, &tensor), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_finish(load, NULL), FB_BUSY);
    EXPECT(fb_tensor_get_info(held, &info), FB_INVALID_ARGUMENT);
    if (fb_last_error(held, text, sizeof text) <= sizeof text || strlen(text) != sizeof text - 1) {
        mistakes++;
    }

    /* Closed in the wrong order: the tensor stays readable. */
    EXPECT(fb_close(client), FB_OK);
    EXPECT(fb_close(client), FB_BAD_HANDLE);
    EXPECT(fb_load_close(load), FB_OK);
    EXPECT(fb_load_close(load), FB_BAD_HANDLE);
    EXPECT(fb_load_next_tensor(load, &tensor), FB_BAD_HANDLE);
    info.size = sizeof info;
    EXPECT(fb_tensor_get_info(held, &info), FB_OK);
    if (info.data == NULL) {
        mistakes++;
    } else if (info.bytes > 0) {
        (void)*(const volatile char *)info.data;
    }
    EXPECT(fb_tensor_release(held), FB_OK);
    EXPECT(fb_tensor_release(held), FB_BAD_HANDLE);

    /* A callback that stops, none, and a load that is over. */
    EXPECT(fb_connect(argv[1], &client), FB_OK);
    EXPECT(fb_load_all(client, options, NULL, NULL, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_all(client, options, stop, &seen, &report), FB_INVALID_ARGUMENT);
    report.size = sizeof report;
    EXPECT(fb_load_all(client, options, stop, &seen, &report), FB_CANCELLED);
    EXPECT(fb_load_open(client, options, &load), FB_OK);
    EXPECT((int32_t)fb_load_report_json(load, NULL, 0), 0);
    EXPECT(fb_load_finish(load, &report), FB_OK);
    EXPECT(fb_load_finish(load, &report), FB_FAILED_PRECONDITION);
    EXPECT(fb_load_next_tensor(load, &tensor), FB_FAILED_PRECONDITION);
    if (fb_load_report_json(load, text, sizeof text) <= sizeof text || text[0] != '{') {
        mistakes++;
    }
    EXPECT(fb_load_close(load), FB_OK);

    /* The daemon dies: whoever started this kills it when it reads the line. */
    EXPECT(fb_load_open(client, options, &load), FB_OK);
    puts("kill");
    fflush(stdout);
    if (getchar() != '\n') {
        return 2;
    }
    {
        int32_t status = fb_load_next_tensor(load, &tensor);
        while (status == FB_OK) {
            fb_tensor_release(tensor);
            status = fb_load_next_tensor(load, &tensor);
        }
        EXPECT(status, FB_UNAVAILABLE);
    }
    if (fb_load_finish(load, NULL) >= 0) {
        mistakes++;
    }
    EXPECT(fb_load_close(load), FB_OK);
    EXPECT(fb_status(client, &daemon), FB_UNAVAILABLE);
    EXPECT(fb_close(client), FB_OK);
    return mistakes > 0;
}
