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

/* Devices, streams, copies and slices, with handles and numbers that they cannot have. */
static void device_mistakes(fb_client *client, const char *endpoint, const char *uri)
{
    static char place[64];
    const uint64_t address = (uint64_t)(uintptr_t)place;
    fb_shard_rule rule = {NULL, 0, 0};
    fb_target target = {NULL, 0, 0};
    fb_load_options options = {0};
    fb_tensor_info info = {0};
    fb_client *other = NULL;
    fb_device *device = NULL, *foreign = NULL;
    fb_stream *stream = NULL, *unrelated = NULL;
    fb_copy *copy = NULL;
    fb_load *load = NULL;
    fb_tensor *tensor = NULL;
    options.size = sizeof options;
    options.uri = uri;
    info.size = sizeof info;

    EXPECT(fb_device_open(NULL, "host", &device), FB_BAD_HANDLE);
    EXPECT(fb_device_open(client, NULL, &device), FB_INVALID_ARGUMENT);
    EXPECT(fb_device_open(client, "host", NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_device_open(client, "gpu:0", &device), FB_INVALID_ARGUMENT);
    EXPECT(fb_device_open(client, "fake:0", &device), FB_INVALID_ARGUMENT);
    EXPECT(fb_device_open(client, "cuda:4294967295", &device), FB_UNAVAILABLE);
    EXPECT(fb_device_close(NULL), FB_OK);
    EXPECT(fb_device_close((fb_device *)(void *)client), FB_BAD_HANDLE);
    EXPECT(fb_stream_open(NULL, NULL, &stream), FB_BAD_HANDLE);
    EXPECT(fb_stream_close(NULL), FB_OK);
    EXPECT(fb_stream_wait(NULL), FB_BAD_HANDLE);
    EXPECT(fb_copy_wait(NULL), FB_BAD_HANDLE);
    EXPECT(fb_copy_query(NULL), FB_BAD_HANDLE);
    EXPECT(fb_copy_release(NULL), FB_OK);
    EXPECT(fb_load_to_device(NULL, &target, 1, NULL), FB_BAD_HANDLE);
    EXPECT(fb_load_describe_tensor(NULL, 0, &info), FB_BAD_HANDLE);

    EXPECT(fb_connect(endpoint, &other), FB_OK);
    EXPECT(fb_device_open(other, "fake:1", &foreign), FB_OK);
    EXPECT(fb_device_open(client, "host", &device), FB_OK);
    EXPECT(fb_stream_open(device, place, &stream), FB_INVALID_ARGUMENT);
    EXPECT(fb_stream_open(device, NULL, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_stream_open(device, NULL, &stream), FB_OK);
    EXPECT(fb_stream_open(foreign, NULL, &unrelated), FB_OK);

    /* A load for a device of another client, for slices that there are not, and for no device. */
    options.device = foreign;
    EXPECT(fb_load_open(client, &options, &load), FB_INVALID_ARGUMENT);
    options.device = (fb_device *)(void *)client;
    EXPECT(fb_load_open(client, &options, &load), FB_BAD_HANDLE);
    options.device = NULL;
    options.rank = 2;
    EXPECT(fb_load_open(client, &options, &load), FB_INVALID_ARGUMENT);
    options.ranks = 2;
    EXPECT(fb_load_open(client, &options, &load), FB_INVALID_ARGUMENT);
    options.rank = 1;
    options.rule_count = 1;
    EXPECT(fb_load_open(client, &options, &load), FB_INVALID_ARGUMENT);
    options.rules = &rule;
    EXPECT(fb_load_open(client, &options, &load), FB_INVALID_ARGUMENT);
    options.rule_count = 0;
    EXPECT(fb_load_open(client, &options, &load), FB_OK);
    EXPECT(fb_load_next_tensor(load, &tensor), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_close(load), FB_OK);
    options.rank = options.ranks = 0;
    EXPECT(fb_load_open(client, &options, &load), FB_OK);
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_describe_tensor(load, 0, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_describe_tensor(load, UINT64_MAX, &info), FB_END);
    EXPECT(fb_load_next_tensor(load, &tensor), FB_OK);
    EXPECT(fb_copy_tensor(tensor, stream, address, UINT32_MAX, &copy), FB_INVALID_ARGUMENT);
    EXPECT(fb_tensor_release(tensor), FB_OK);
    EXPECT(fb_load_close(load), FB_OK);

    /* Destinations that cannot be, streams of others, and what was closed. */
    options.device = device;
    EXPECT(fb_load_open(client, &options, &load), FB_OK);
    EXPECT(fb_load_to_device(load, NULL, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_next_tensor(load, &tensor), FB_OK);
    EXPECT(fb_copy_tensor(tensor, NULL, address, sizeof place, &copy), FB_BAD_HANDLE);
    EXPECT(fb_copy_tensor(NULL, stream, address, sizeof place, &copy), FB_BAD_HANDLE);
    EXPECT(fb_copy_tensor(tensor, unrelated, address, UINT32_MAX, &copy), FB_INVALID_ARGUMENT);
    EXPECT(fb_copy_tensor(tensor, stream, address, 0, &copy), FB_INVALID_ARGUMENT);
    EXPECT(fb_copy_tensor(tensor, stream, 0, UINT32_MAX, &copy), FB_INVALID_ARGUMENT);
    EXPECT(fb_copy_tensor(tensor, stream, UINT64_MAX, UINT32_MAX, &copy), FB_INVALID_ARGUMENT);
    if (copy != NULL) {
        mistakes++;
    }
    EXPECT(fb_stream_wait(stream), FB_OK);
    EXPECT(fb_stream_close(stream), FB_OK);
    EXPECT(fb_stream_close(stream), FB_BAD_HANDLE);
    EXPECT(fb_copy_tensor(tensor, stream, address, sizeof place, NULL), FB_BAD_HANDLE);
    EXPECT(fb_tensor_release(tensor), FB_OK);
    target.name = "a load that was read";
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_close(load), FB_OK);
    EXPECT(fb_load_open(client, &options, &load), FB_OK);
    target.name = "no such tensor";
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_FAILED_PRECONDITION);
    EXPECT(fb_load_close(load), FB_OK);
    EXPECT(fb_load_open(client, &options, &load), FB_OK);
    EXPECT(fb_load_describe_tensor(load, 0, &info), FB_OK);
    target.name = info.name;
    target.address = address;
    target.bytes = 1;
    EXPECT(fb_load_to_device(load, &target, 1, NULL), FB_INVALID_ARGUMENT);
    EXPECT(fb_load_close(load), FB_OK);
    EXPECT(fb_stream_close(unrelated), FB_OK);
    EXPECT(fb_device_close(device), FB_OK);
    EXPECT(fb_device_close(device), FB_BAD_HANDLE);
    EXPECT(fb_device_close(foreign), FB_OK);
    EXPECT(fb_load_open(client, &options, &load), FB_BAD_HANDLE);
    EXPECT(fb_close(other), FB_OK);
}

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
    /* As compiled before there were devices and slices, which then are not asked for. */
    options->size = offsetof(fb_load_options, device);
    options->rank = 9;
    EXPECT(fb_load_open(client, options, &load), FB_OK);
    EXPECT(fb_load_close(load), FB_OK);
    options->rank = 0;
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

    device_mistakes(client, argv[1], argv[2]);

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
