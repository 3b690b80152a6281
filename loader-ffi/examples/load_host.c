/* Loads a checkpoint to host memory and prints each tensor with a checksum.
 *
 *   cc -Wall -Wextra -Werror load_host.c $(pkg-config --cflags --libs forebay) -o load_host
 *   ./load_host unix:///run/forebay/forebay.sock s3://models/llama/ ['model.layers.0.*' ...]
 *
 * Lines on stdout: NAME DTYPE DIMENSIONS BYTES FNV-1A. Exit code 0, or 1 with a sentence on stderr.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "forebay.h"

/* Says what went wrong with a handle, or in this thread. */
static int failed(const char *what, const void *handle, int32_t status)
{
    char text[1024];
    fb_last_error(handle, text, sizeof text);
    fprintf(stderr, "%s: %s (%" PRId32 "): %s\n", what, fb_strerror(status), status, text);
    return 1;
}

static uint64_t fnv1a(const unsigned char *bytes, uint64_t count)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    uint64_t at;
    for (at = 0; at < count; at++) {
        hash = (hash ^ bytes[at]) * UINT64_C(1099511628211);
    }
    return hash;
}

static int print_tensor(const fb_tensor *tensor)
{
    fb_tensor_info info = {0};
    size_t dim;
    int32_t status;
    info.size = sizeof info;
    status = fb_tensor_get_info(tensor, &info);
    if (status != FB_OK) {
        return failed("fb_tensor_get_info", tensor, status);
    }
    printf("%s %s [", info.name, info.dtype);
    for (dim = 0; dim < info.ndim; dim++) {
        printf("%s%" PRIu64, dim > 0 ? "," : "", info.shape[dim]);
    }
    printf("] %" PRIu64 " %016" PRIx64 "\n", info.bytes, fnv1a(info.data, info.bytes));
    return 0;
}

static int print_report(fb_load *load)
{
    fb_report report = {0};
    size_t needed;
    char *json;
    int32_t status;
    report.size = sizeof report;
    status = fb_load_finish(load, &report);
    if (status != FB_OK) {
        return failed("fb_load_finish", load, status);
    }
    fprintf(stderr, "%" PRIu64 " bytes in %.3f s\n", report.bytes, report.wall_seconds);
    needed = fb_load_report_json(load, NULL, 0);
    json = malloc(needed);
    if (needed == 0 || json == NULL) {
        free(json);
        return 1;
    }
    fb_load_report_json(load, json, needed);
    fprintf(stderr, "%s\n", json);
    free(json);
    return 0;
}

static int load_all(fb_load *load)
{
    fb_tensor *tensor;
    int32_t status;
    while ((status = fb_load_next_tensor(load, &tensor)) == FB_OK) {
        int bad = print_tensor(tensor);
        fb_tensor_release(tensor);
        if (bad) {
            return 1;
        }
    }
    if (status != FB_END) {
        return failed("fb_load_next_tensor", load, status);
    }
    return print_report(load);
}

int main(int argc, char **argv)
{
    fb_client *client;
    fb_load *load;
    fb_load_options options = {0};
    int32_t status;
    int bad;
    if (argc < 3) {
        fprintf(stderr, "usage: %s ENDPOINT URI [TENSOR-GLOB...]\n", argv[0]);
        return 2;
    }
    if (fb_abi_version() < FB_ABI_VERSION) {
        fprintf(stderr, "libforebay.so is older than forebay.h\n");
        return 1;
    }
    status = fb_connect(argv[1], &client);
    if (status != FB_OK) {
        return failed("fb_connect", NULL, status);
    }
    options.size = sizeof options;
    options.uri = argv[2];
    options.deadline_ms = 120000;
    options.tensors = (const char *const *)(argv + 3);
    options.tensor_count = (size_t)(argc - 3);
    status = fb_load_open(client, &options, &load);
    if (status != FB_OK) {
        bad = failed("fb_load_open", client, status);
    } else {
        bad = load_all(load);
        fb_load_close(load);
    }
    fb_close(client);
    return bad;
}
