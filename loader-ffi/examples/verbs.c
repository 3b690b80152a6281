/* Calls what load_host.c does not, and prints what it got: prefetch, info, whole objects, one call
 * for all, two threads on one client, copies on a stream, and slices to memory of this process.
 *
 *   ./verbs ENDPOINT URI
 *   ./verbs ENDPOINT URI cuda:0      copies to a GPU, and closes everything else meanwhile
 *
 * Lines on stdout: WAY NAME BYTES FNV-1A, or WAY and numbers. Exit code 0, or 1 with a sentence.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forebay.h"

enum { TENSORS_MAX = 256, STREAM_COPIES_KEPT = 3 };

static const char *uri;
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

/* Ends the program: there is nothing to go on with. */
static void need_at(int line, int32_t status, int32_t expected)
{
    if (status != expected) {
        char text[1024];
        fb_last_error(NULL, text, sizeof text);
        fprintf(stderr, "line %d: %s (%" PRId32 "): %s\n", line, fb_strerror(status), status, text);
        exit(1);
    }
}

#define NEED(call, expected) need_at(__LINE__, (call), (expected))

static void print(const char *way, const char *name, const void *data, uint64_t bytes)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    uint64_t at;
    for (at = 0; at < bytes; at++) {
        hash = (hash ^ ((const unsigned char *)data)[at]) * UINT64_C(1099511628211);
    }
    pthread_mutex_lock(&output);
    printf("%s %s %" PRIu64 " %016" PRIx64 "\n", way, name, bytes, hash);
    pthread_mutex_unlock(&output);
}

static fb_load_options options_of(fb_device *device)
{
    fb_load_options options = {0};
    options.size = sizeof options;
    options.uri = uri;
    options.deadline_ms = 120000;
    options.device = device;
    return options;
}

/* The whole report of a finished load says so. */
static void need_in_report(const fb_load *load, const char *words)
{
    static char json[1 << 16];
    if (fb_load_report_json(load, json, sizeof json) > sizeof json || strstr(json, words) == NULL) {
        fprintf(stderr, "%s is not in the report: %s\n", words, json);
        exit(1);
    }
}

static void prefetch(fb_client *client)
{
    fb_prefetch_options options = {0};
    fb_report report = {0};
    options.size = sizeof options;
    options.uri = uri;
    options.deadline_ms = 120000;
    report.size = sizeof report;
    NEED(fb_prefetch(client, &options, &report), FB_OK);
    printf("prefetch %" PRIu64 "\n", report.bytes);
    NEED(fb_prefetch(client, &options, NULL), FB_OK);
}

static void objects(fb_client *client)
{
    fb_load_options options = options_of(NULL);
    fb_load_info info = {0};
    fb_tensor_info known = {0};
    fb_load *load;
    fb_tensor *object;
    uint64_t count;
    int32_t status;
    options.load_id = "by-objects";
    NEED(fb_load_open(client, &options, &load), FB_OK);
    info.size = sizeof info;
    NEED(fb_load_get_info(load, &info), FB_OK);
    known.size = sizeof known;
    for (count = 0; fb_load_describe_object(load, count, &known) == FB_OK; count++) {
        printf("described %s %" PRIu64 "\n", known.name, known.bytes);
    }
    printf("info %s %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %d %d\n", info.load_id,
           info.uri, info.object_count, info.tensor_count, info.checkpoint_bytes,
           info.granted_bytes, info.window_bytes > 0, strncmp(info.revision, "b3:", 3) == 0);
    while ((status = fb_load_next_object(load, &object)) == FB_OK) {
        NEED(fb_tensor_get_info(object, &known), FB_OK);
        print("object", known.name, known.data, known.bytes);
        NEED(fb_tensor_release(object), FB_OK);
    }
    NEED(status, FB_END);
    NEED(fb_load_finish(load, NULL), FB_OK);
    NEED(fb_load_close(load), FB_OK);
}

static int32_t each(void *way, const fb_tensor_info *tensor)
{
    print(way, tensor->name, tensor->data, tensor->bytes);
    return 0;
}

static void all(fb_client *client, const char *way)
{
    fb_load_options options = options_of(NULL);
    fb_report report = {0};
    report.size = sizeof report;
    NEED(fb_load_all(client, &options, each, (void *)(uintptr_t)way, &report), FB_OK);
    if (report.bytes == 0 || report.bytes != report.ram_bytes + report.origin_tier_bytes) {
        fprintf(stderr, "the report does not add up\n");
        exit(1);
    }
}

static void *one_thread(void *client)
{
    all(client, "thread-1");
    return NULL;
}

static void *other_thread(void *client)
{
    all(client, "thread-2");
    return NULL;
}

static void threads(fb_client *client)
{
    pthread_t first, second;
    if (pthread_create(&first, NULL, one_thread, client)
        || pthread_create(&second, NULL, other_thread, client)) {
        exit(1);
    }
    pthread_join(first, NULL);
    pthread_join(second, NULL);
}

/* Names and places in memory of this process. */
struct kept {
    char *names[TENSORS_MAX];
    void *places[TENSORS_MAX];
    uint64_t bytes[TENSORS_MAX];
    size_t count;
};

static size_t keep(struct kept *kept, const fb_tensor_info *info)
{
    size_t at = kept->count++;
    if (at == TENSORS_MAX) {
        exit(1);
    }
    kept->names[at] = malloc(strlen(info->name) + 1);
    kept->places[at] = malloc(info->bytes + 1);
    kept->bytes[at] = info->bytes;
    if (kept->names[at] == NULL || kept->places[at] == NULL) {
        exit(1);
    }
    strcpy(kept->names[at], info->name);
    return at;
}

static void print_kept(const char *way, struct kept *kept)
{
    size_t at;
    for (at = 0; at < kept->count; at++) {
        print(way, kept->names[at], kept->places[at], kept->bytes[at]);
        free(kept->names[at]);
        free(kept->places[at]);
    }
    kept->count = 0;
}

static uint64_t address(const void *place)
{
    return (uint64_t)(uintptr_t)place;
}

/* The first copies are waited for one by one, the others by their stream. */
static void on_a_stream(fb_client *client, fb_device *device)
{
    fb_load_options options = options_of(device);
    struct kept kept = {0};
    fb_tensor_info info = {0};
    fb_copy *copy;
    fb_stream *stream;
    fb_load *load;
    fb_tensor *tensor;
    int32_t status;
    NEED(fb_load_open(client, &options, &load), FB_OK);
    NEED(fb_stream_open(device, NULL, &stream), FB_OK);
    /* Both stay usable, which is what a program that ends in no order needs. */
    NEED(fb_device_close(device), FB_OK);
    info.size = sizeof info;
    while ((status = fb_load_next_tensor(load, &tensor)) == FB_OK) {
        size_t at;
        int waits = kept.count < STREAM_COPIES_KEPT;
        NEED(fb_tensor_get_info(tensor, &info), FB_OK);
        at = keep(&kept, &info);
        NEED(fb_copy_tensor(tensor, stream, address(kept.places[at]), kept.bytes[at],
                            waits ? &copy : NULL),
             FB_OK);
        NEED(fb_tensor_release(tensor), FB_OK);
        if (waits) {
            NEED(fb_copy_wait(copy), FB_OK);
            NEED(fb_copy_query(copy), FB_OK);
            NEED(fb_copy_release(copy), FB_OK);
        }
    }
    NEED(status, FB_END);
    NEED(fb_stream_wait(stream), FB_OK);
    NEED(fb_stream_close(stream), FB_OK);
    NEED(fb_load_finish(load, NULL), FB_OK);
    NEED(fb_load_close(load), FB_OK);
    print_kept("stream", &kept);
}

/* Copies of a device that takes its time hold what they read, and the load waits for it. */
static void slowly(fb_client *client)
{
    fb_load_options options;
    fb_copy *copy = NULL;
    fb_device *device;
    fb_stream *stream;
    fb_load *load;
    fb_tensor *tensor;
    fb_tensor_info info = {0};
    int32_t status;
    int pending = 0;
    NEED(fb_device_open(client, "fake:0.005", &device), FB_OK);
    options = options_of(device);
    NEED(fb_load_open(client, &options, &load), FB_OK);
    NEED(fb_stream_open(device, NULL, &stream), FB_OK);
    info.size = sizeof info;
    while ((status = fb_load_next_tensor(load, &tensor)) == FB_OK) {
        NEED(fb_tensor_get_info(tensor, &info), FB_OK);
        NEED(fb_copy_release(copy), FB_OK);
        NEED(fb_copy_tensor(tensor, stream, 1, info.bytes, &copy), FB_OK);
        NEED(fb_tensor_release(tensor), FB_OK);
        pending |= fb_copy_query(copy) == FB_PENDING;
    }
    NEED(status, FB_END);
    NEED(fb_load_finish(load, NULL), FB_OK);
    need_in_report(load, "\"kind\":\"fake\"");
    NEED(fb_copy_wait(copy), FB_OK);
    NEED(fb_stream_wait(stream), FB_OK);
    NEED(fb_copy_query(copy), FB_OK);
    NEED(fb_copy_release(copy), FB_OK);
    NEED(fb_load_close(load), FB_OK);
    NEED(fb_stream_close(stream), FB_OK);
    NEED(fb_device_close(device), FB_OK);
    printf("slowly %d\n", pending);
}

/* One rank's slices, along dimension 0; of the tensors that the rule matches, along 1. */
static void slices(fb_client *client, fb_device *device, uint32_t rank, const char *way)
{
    static const fb_shard_rule rule = {"*proj*", 1, 0};
    fb_target targets[TENSORS_MAX] = {{0}};
    fb_load_options options = options_of(device);
    struct kept kept = {0};
    fb_tensor_info info = {0};
    fb_report report = {0};
    fb_load *load;
    uint64_t index;
    options.rank = rank;
    options.ranks = 2;
    options.rules = &rule;
    options.rule_count = 1;
    NEED(fb_load_open(client, &options, &load), FB_OK);
    info.size = sizeof info;
    for (index = 0; fb_load_describe_tensor(load, index, &info) == FB_OK; index++) {
        size_t at = keep(&kept, &info);
        targets[at].name = kept.names[at];
        targets[at].address = address(kept.places[at]);
        targets[at].bytes = kept.bytes[at];
    }
    report.size = sizeof report;
    NEED(fb_load_to_device(load, targets, kept.count, &report), FB_OK);
    need_in_report(load, "\"device\":\"host\"");
    NEED(fb_load_close(load), FB_OK);
    print_kept(way, &kept);
}

/* Memory of the GPU whose primary context the library has retained. */
static unsigned long long gpu_memory(size_t bytes)
{
    int (*retain)(void **context, int device);
    int (*release)(int device);
    int (*set)(void *context);
    int (*allocate)(unsigned long long *pointer, size_t bytes);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    void *functions[4];
    void *context;
    unsigned long long pointer = 0;
    functions[0] = dlsym(library, "cuDevicePrimaryCtxRetain");
    functions[1] = dlsym(library, "cuDevicePrimaryCtxRelease_v2");
    functions[2] = dlsym(library, "cuCtxSetCurrent");
    functions[3] = dlsym(library, "cuMemAlloc_v2");
    memcpy(&retain, &functions[0], sizeof retain);
    memcpy(&release, &functions[1], sizeof release);
    memcpy(&set, &functions[2], sizeof set);
    memcpy(&allocate, &functions[3], sizeof allocate);
    if (retain(&context, 0) || set(context) || allocate(&pointer, bytes) || release(0)) {
        exit(1);
    }
    return pointer;
}

static void free_gpu_memory(unsigned long long pointer)
{
    int (*release)(unsigned long long pointer);
    void *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemFree_v2");
    memcpy(&release, &function, sizeof release);
    if (release(pointer)) {
        exit(1);
    }
}

/* Copies hold what they read, while everything else is closed and another load wants the room. */
static void held(fb_client *client, const char *spec)
{
    fb_load_options options;
    fb_tensor_info info = {0};
    fb_copy *copy = NULL;
    fb_device *device;
    fb_stream *stream;
    fb_load *load;
    fb_tensor *tensor;
    unsigned long long memory;
    uint64_t copied = 0;
    NEED(fb_device_open(client, spec, &device), FB_OK);
    /* What CUDA calls the default stream of the thread is none of the device's; NULL is. */
    NEED(fb_stream_open(device, (void *)(uintptr_t)2, &stream), FB_INVALID_ARGUMENT);
    NEED(fb_stream_open(device, NULL, &stream), FB_OK);
    memory = gpu_memory(1 << 20);
    options = options_of(device);
    NEED(fb_load_open(client, &options, &load), FB_OK);
    info.size = sizeof info;
    while (copied < 128 << 10) {
        NEED(fb_load_next_tensor(load, &tensor), FB_OK);
        NEED(fb_tensor_get_info(tensor, &info), FB_OK);
        NEED(fb_copy_release(copy), FB_OK);
        NEED(fb_copy_tensor(tensor, stream, memory + copied, (1 << 20) - copied, &copy), FB_OK);
        copied += info.bytes;
        NEED(fb_tensor_release(tensor), FB_OK);
    }
    NEED(fb_load_close(load), FB_OK);
    NEED(fb_device_close(device), FB_OK);
    all(client, "all");
    NEED(fb_close(client), FB_OK);
    NEED(fb_copy_wait(copy), FB_OK);
    NEED(fb_copy_release(copy), FB_OK);
    NEED(fb_stream_wait(stream), FB_OK);
    free_gpu_memory(memory);
    NEED(fb_stream_close(stream), FB_OK);
}

int main(int argc, char **argv)
{
    fb_client *client;
    fb_device *device;
    if (argc != 3 && argc != 4) {
        return 2;
    }
    uri = argv[2];
    NEED(fb_connect(argv[1], &client), FB_OK);
    if (argc == 4) {
        held(client, argv[3]);
        return 0;
    }
    prefetch(client);
    objects(client);
    all(client, "all");
    threads(client);
    slowly(client);
    NEED(fb_device_open(client, "host", &device), FB_OK);
    slices(client, device, 0, "rank-0");
    slices(client, device, 1, "rank-1");
    on_a_stream(client, device);
    NEED(fb_close(client), FB_OK);
    return 0;
}
