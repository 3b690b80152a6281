/* Loads a checkpoint to an NVIDIA GPU and prints each tensor with a checksum of what is there.
 *
 *   cc -Wall -Wextra -Werror load_cuda.c $(pkg-config --cflags --libs forebay) -ldl -o load_cuda
 *   ./load_cuda unix:///run/forebay/forebay.sock s3://models/llama/ 0
 *   ./load_cuda unix:///run/forebay/forebay.sock s3://models/llama/ 0 1 4
 *
 * The first loads all of it to GPU 0, tensor by tensor, on a stream of this program's own; the second
 * what rank 1 of 4 needs, in one call. The driver's library is opened here and its few functions are
 * declared, so that neither the CUDA toolkit nor a driver is needed to build. A program that includes
 * cuda.h passes its own CUstream and CUdeviceptr in the same way.
 *
 * Lines on stdout: NAME DTYPE DIMENSIONS BYTES FNV-1A. Exit code 0, or 1 with a sentence on stderr.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forebay.h"

/* From the driver's public interface. */
typedef struct CUctx_st *context;
typedef struct CUstream_st *stream;
typedef unsigned long long device_pointer;
enum { STREAM_NON_BLOCKING = 1 };

static struct {
    int (*init)(unsigned flags);
    int (*device_get)(int *device, int ordinal);
    int (*context_retain)(context *context, int device);
    int (*context_release)(int device);
    int (*context_set)(context context);
    int (*stream_create)(stream *stream, unsigned flags);
    int (*stream_synchronize)(stream stream);
    int (*stream_destroy)(stream stream);
    int (*memory_allocate)(device_pointer *pointer, size_t bytes);
    int (*memory_free)(device_pointer pointer);
    int (*memory_read)(void *to, device_pointer from, size_t bytes);
    int (*error_name)(int code, const char **name);
} cuda;

/* A tensor on the GPU. */
struct placed {
    char *name;
    char dtype[16];
    char shape[128];
    device_pointer pointer;
    uint64_t bytes;
};

struct all_placed {
    struct placed *items;
    size_t count;
};

/* Says what went wrong with a handle, or in this thread. */
static int failed(const char *what, const void *handle, int32_t status)
{
    char text[1024];
    fb_last_error(handle, text, sizeof text);
    fprintf(stderr, "%s: %s (%" PRId32 "): %s\n", what, fb_strerror(status), status, text);
    return 1;
}

/* Says what the driver failed at; 0 if it did not. */
static int refused(const char *what, int code)
{
    const char *name = NULL;
    if (code == 0) {
        return 0;
    }
    cuda.error_name(code, &name);
    fprintf(stderr, "%s: %s (%d)\n", what, name != NULL ? name : "an error without a name", code);
    return 1;
}

/* Opens the driver's library; it stays open. */
static int find_driver(void)
{
    static const char *const names[] = {
        "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
        "cuCtxSetCurrent", "cuStreamCreate", "cuStreamSynchronize", "cuStreamDestroy_v2",
        "cuMemAlloc_v2", "cuMemFree_v2", "cuMemcpyDtoH_v2", "cuGetErrorName",
    };
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    size_t at;
    if (library == NULL) {
        fprintf(stderr, "there is no driver: %s\n", dlerror());
        return 1;
    }
    for (at = 0; at < sizeof names / sizeof *names; at++) {
        void *function = dlsym(library, names[at]);
        if (function == NULL) {
            fprintf(stderr, "the driver lacks %s\n", names[at]);
            return 1;
        }
        /* The members stand in the order of the names. */
        memcpy((char *)&cuda + at * sizeof function, &function, sizeof function);
    }
    return 0;
}

/* Allocates memory for a tensor, or a slice of one, and notes what it is. */
static struct placed *place(struct all_placed *all, const fb_tensor_info *info)
{
    struct placed *items = realloc(all->items, (all->count + 1) * sizeof *items);
    struct placed *item;
    size_t dim, at = 0;
    if (items == NULL) {
        return NULL;
    }
    all->items = items;
    item = memset(&items[all->count], 0, sizeof *item);
    item->name = malloc(strlen(info->name) + 1);
    if (item->name == NULL) {
        return NULL;
    }
    strcpy(item->name, info->name);
    snprintf(item->dtype, sizeof item->dtype, "%s", info->dtype);
    for (dim = 0; dim < info->ndim && at < sizeof item->shape; dim++) {
        at += (size_t)snprintf(item->shape + at, sizeof item->shape - at, "%s%" PRIu64,
                               dim > 0 ? "," : "", info->shape[dim]);
    }
    item->bytes = info->bytes;
    all->count++;
    /* The driver does not give 0 bytes. */
    if (refused("cuMemAlloc", cuda.memory_allocate(&item->pointer, info->bytes + !info->bytes))) {
        return NULL;
    }
    return item;
}

/* Copies what comes, as it comes, on this program's own stream. */
static int copy_tensors(fb_load *load, fb_device *device, stream own, struct all_placed *all)
{
    fb_stream *copies;
    fb_tensor *tensor;
    int32_t status = fb_stream_open(device, own, &copies);
    int bad = 0;
    if (status != FB_OK) {
        return failed("fb_stream_open", device, status);
    }
    while (!bad && (status = fb_load_next_tensor(load, &tensor)) == FB_OK) {
        fb_tensor_info info = {0};
        struct placed *item = NULL;
        info.size = sizeof info;
        if (fb_tensor_get_info(tensor, &info) == FB_OK) {
            item = place(all, &info);
        }
        if (item == NULL) {
            bad = 1;
        } else {
            status = fb_copy_tensor(tensor, copies, item->pointer, item->bytes, NULL);
            bad = status != FB_OK && failed("fb_copy_tensor", tensor, status);
        }
        /* At once: its bytes are held until the copy is done. */
        fb_tensor_release(tensor);
    }
    if (!bad && status != FB_END) {
        bad = failed("fb_load_next_tensor", load, status);
    }
    /* Kernels that use the tensors could be launched on the stream here, without waiting. */
    if (!bad && refused("cuStreamSynchronize", cuda.stream_synchronize(own))) {
        bad = 1;
    }
    status = fb_stream_wait(copies);
    if (status != FB_OK) {
        bad = failed("fb_stream_wait", copies, status);
    }
    fb_stream_close(copies);
    if (!bad && (status = fb_load_finish(load, NULL)) != FB_OK) {
        bad = failed("fb_load_finish", load, status);
    }
    return bad;
}

/* Gets everything to where there is memory for it, in one call. */
static int copy_at_once(fb_load *load, struct all_placed *all)
{
    fb_target *targets;
    fb_tensor_info info = {0};
    uint64_t index;
    size_t at;
    int32_t status;
    info.size = sizeof info;
    for (index = 0; (status = fb_load_describe_tensor(load, index, &info)) == FB_OK; index++) {
        if (place(all, &info) == NULL) {
            return 1;
        }
    }
    if (status != FB_END) {
        return failed("fb_load_describe_tensor", load, status);
    }
    targets = calloc(all->count + 1, sizeof *targets);
    if (targets == NULL) {
        return 1;
    }
    for (at = 0; at < all->count; at++) {
        targets[at].name = all->items[at].name;
        targets[at].address = all->items[at].pointer;
        targets[at].bytes = all->items[at].bytes;
    }
    status = fb_load_to_device(load, targets, all->count, NULL);
    free(targets);
    return status != FB_OK && failed("fb_load_to_device", load, status);
}

/* Reads a tensor back and prints it. */
static int print_placed(const struct placed *item)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    unsigned char *bytes = malloc(item->bytes + 1);
    uint64_t at;
    if (bytes == NULL
        || refused("cuMemcpyDtoH", cuda.memory_read(bytes, item->pointer, item->bytes))) {
        free(bytes);
        return 1;
    }
    for (at = 0; at < item->bytes; at++) {
        hash = (hash ^ bytes[at]) * UINT64_C(1099511628211);
    }
    free(bytes);
    printf("%s %s [%s] %" PRIu64 " %016" PRIx64 "\n", item->name, item->dtype, item->shape,
           item->bytes, hash);
    return 0;
}

static int load_to(fb_client *client, fb_device *device, stream own, char **argv, int argc)
{
    fb_load_options options = {0};
    struct all_placed all = {0};
    fb_load *load;
    size_t at;
    int32_t status;
    int bad;
    options.size = sizeof options;
    options.uri = argv[2];
    options.deadline_ms = 120000;
    options.device = device;
    if (argc == 6) {
        options.rank = (uint32_t)strtoul(argv[4], NULL, 10);
        options.ranks = (uint32_t)strtoul(argv[5], NULL, 10);
    }
    status = fb_load_open(client, &options, &load);
    if (status != FB_OK) {
        return failed("fb_load_open", client, status);
    }
    bad = argc == 6 ? copy_at_once(load, &all) : copy_tensors(load, device, own, &all);
    fb_load_close(load);
    for (at = 0; at < all.count; at++) {
        if (!bad) {
            bad = print_placed(&all.items[at]);
        }
        if (all.items[at].pointer != 0) {
            cuda.memory_free(all.items[at].pointer);
        }
        free(all.items[at].name);
    }
    free(all.items);
    return bad;
}

/* With the GPU's primary context current, which Forebay and the CUDA runtime use too. */
static int in_context(fb_client *client, char **argv, int argc)
{
    char spec[32];
    fb_device *device;
    stream own;
    int32_t status;
    int bad;
    snprintf(spec, sizeof spec, "cuda:%s", argv[3]);
    status = fb_device_open(client, spec, &device);
    if (status != FB_OK) {
        return failed("fb_device_open", client, status);
    }
    bad = refused("cuStreamCreate", cuda.stream_create(&own, STREAM_NON_BLOCKING));
    if (!bad) {
        bad = load_to(client, device, own, argv, argc);
        cuda.stream_destroy(own);
    }
    fb_device_close(device);
    return bad;
}

int main(int argc, char **argv)
{
    fb_client *client;
    context primary;
    int number, bad;
    int32_t status;
    if (argc != 4 && argc != 6) {
        fprintf(stderr, "usage: %s ENDPOINT URI GPU [RANK RANKS]\n", argv[0]);
        return 2;
    }
    if (fb_abi_version() < FB_ABI_VERSION) {
        fprintf(stderr, "libforebay.so is older than forebay.h\n");
        return 1;
    }
    if (find_driver() || refused("cuInit", cuda.init(0))
        || refused("cuDeviceGet", cuda.device_get(&number, atoi(argv[3])))
        || refused("cuDevicePrimaryCtxRetain", cuda.context_retain(&primary, number))) {
        return 1;
    }
    bad = refused("cuCtxSetCurrent", cuda.context_set(primary));
    if (!bad && (status = fb_connect(argv[1], &client)) != FB_OK) {
        bad = failed("fb_connect", NULL, status);
    } else if (!bad) {
        bad = in_context(client, argv, argc);
        fb_close(client);
    }
    cuda.context_set(NULL);
    cuda.context_release(number);
    return bad;
}
