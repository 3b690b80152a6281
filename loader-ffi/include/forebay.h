/* Forebay for C: load a checkpoint from the daemon of this node, without copying it.
 *
 * Every function returns a status, unless it says otherwise: FB_OK is 0, errors are negative, and
 * fb_last_error() has a sentence about the last one. Handles are opaque; one that is NULL, closed or
 * of another kind is FB_BAD_HANDLE, never a crash. Texts are UTF-8 and end with a NUL. Structs begin
 * with their own size: set it, and everything that you do not use to zero. A handle can be passed
 * from thread to thread; what may be used by several at once is said at each function. No function
 * raises a signal or reads an environment variable. After fork(), the child may use none of its
 * parent's handles.
 *
 * Generated from the sources by cbindgen: do not edit. SPDX-License-Identifier: Apache-2.0 */

#ifndef FOREBAY_H
#define FOREBAY_H

#include <stddef.h>
#include <stdint.h>

/**
 * It worked.
 */
#define FB_OK 0

/**
 * It worked, and there is no further one. No error.
 */
#define FB_END 1

/**
 * It is not done yet. No error.
 */
#define FB_PENDING 2

/**
 * The callback of the caller ended the load.
 */
#define FB_CANCELLED -1

/**
 * The caller's mistake: correct the call.
 */
#define FB_INVALID_ARGUMENT -3

/**
 * The time budget is spent.
 */
#define FB_DEADLINE_EXCEEDED -4

/**
 * No such object.
 */
#define FB_NOT_FOUND -5

/**
 * The daemon or the origin's policy refuses the caller.
 */
#define FB_PERMISSION_DENIED -7

/**
 * Overload on this node: wait and call again. Or the device has no room.
 */
#define FB_RESOURCE_EXHAUSTED -8

/**
 * The world changed: load again to get the new revision.
 */
#define FB_FAILED_PRECONDITION -9

/**
 * A bug of Forebay.
 */
#define FB_INTERNAL -13

/**
 * The daemon, the origin or the device cannot be had or fails: retry later, or see what
 * `fb_last_error` says of the driver.
 */
#define FB_UNAVAILABLE -14

/**
 * The bytes are wrong.
 */
#define FB_DATA_LOSS -15

/**
 * Credentials are missing or have expired.
 */
#define FB_UNAUTHENTICATED -16

/**
 * Another thread is inside of this handle, or tensors of the load are not released yet.
 */
#define FB_BUSY -100

/**
 * The handle is NULL, closed, or of another kind.
 */
#define FB_BAD_HANDLE -101

/**
 * Somebody waits for the load.
 */
#define FB_LANE_INTERACTIVE 0

/**
 * Nobody waits for the load.
 */
#define FB_LANE_PREFETCH 1

/**
 * Bytes are handed over as they come. The load fails at its end if a digest does not hold.
 */
#define FB_VERIFY_STREAM 0

/**
 * Bytes are handed over when all of their object has been compared with its digest.
 */
#define FB_VERIFY_STRICT 1

/**
 * Bytes may lie anywhere in host memory.
 */
#define FB_PLACE_ANYWHERE 0

/**
 * Bytes should lie near the PCI device `gpu`.
 */
#define FB_PLACE_GPU 1

/**
 * Bytes should lie on the NUMA node `numa_node`.
 */
#define FB_PLACE_NUMA_NODE 2

/**
 * Host memory.
 */
#define FB_TIER_RAM 0

/**
 * Local disk.
 */
#define FB_TIER_NVME 1

/**
 * The version of this interface that the header describes. It rises when something is added; what
 * is there stays.
 */
#define FB_ABI_VERSION 3

/**
 * A connection to the daemon of this node.
 */
typedef struct fb_client fb_client;

/**
 * A copy that was started.
 */
typedef struct fb_copy fb_copy;

/**
 * Somewhere that tensors are copied to.
 */
typedef struct fb_device fb_device;

/**
 * A running load.
 */
typedef struct fb_load fb_load;

/**
 * A stream of a device, on which tensors are copied.
 */
typedef struct fb_stream fb_stream;

/**
 * A tensor, or a whole object.
 */
typedef struct fb_tensor fb_tensor;

/**
 * Where the daemon is, and what this caller is known by beside its uid. Set `size` to
 * `sizeof(fb_connect_options)` and everything else to zero, then what you need. Everything it points
 * to is read during the call only, and no error has a secret in it.
 */
typedef struct fb_connect_options {
    /**
     * `sizeof(fb_connect_options)`.
     */
    size_t size;
    /**
     * `unix:///run/forebay/forebay.sock`, or `tcp://HOST:PORT` for all but loads. Required.
     */
    const char *endpoint;
    /**
     * The token of the caller's domain; NULL: none, or that of `token_file`.
     */
    const char *token;
    /**
     * A file with the token; white space around it does not count. NULL: none, or `token`.
     */
    const char *token_file;
    /**
     * Who certifies the daemon over `tcp://`, a file in PEM; NULL: TCP is in the clear.
     */
    const char *tls_ca_file;
    /**
     * This side's certificate over `tcp://`, a file in PEM; NULL: none is shown.
     */
    const char *tls_cert_file;
    /**
     * The key of `tls_cert_file`, a file in PEM.
     */
    const char *tls_key_file;
} fb_connect_options;

/**
 * What to prefetch. Set `size` to `sizeof(fb_prefetch_options)` and everything else to zero, then
 * what you need.
 */
typedef struct fb_prefetch_options {
    /**
     * `sizeof(fb_prefetch_options)`.
     */
    size_t size;
    /**
     * The checkpoint. Required.
     */
    const char *uri;
    /**
     * The budget in milliseconds; 0: none.
     */
    uint64_t deadline_ms;
    /**
     * The id of the load, as in `fb_load_options`.
     */
    const char *load_id;
    /**
     * Where it has to be in the end: `FB_TIER_RAM` or `FB_TIER_NVME`.
     */
    int32_t tier;
    /**
     * Not zero: keep it on local disk until it is unpinned.
     */
    int32_t pin;
} fb_prefetch_options;

/**
 * How a load went: the main figures. Set `size` to `sizeof(fb_report)`.
 */
typedef struct fb_report {
    /**
     * `sizeof(fb_report)`.
     */
    size_t size;
    /**
     * Bytes handed over.
     */
    uint64_t bytes;
    /**
     * Of them: from host memory.
     */
    uint64_t ram_bytes;
    /**
     * Of them: from local disk.
     */
    uint64_t nvme_bytes;
    /**
     * Of them: from the origin.
     */
    uint64_t origin_tier_bytes;
    /**
     * Bytes that this load caused to be fetched from the origin, failed attempts included.
     */
    uint64_t origin_bytes;
    /**
     * Of `origin_bytes`: what was brought twice.
     */
    uint64_t wasted_bytes;
    /**
     * Requests to the origin.
     */
    uint64_t attempts;
    /**
     * Requests that repeated a failed one.
     */
    uint64_t retries;
    /**
     * The most bytes held at one time.
     */
    uint64_t peak_window_bytes;
    /**
     * From the request to the last release.
     */
    double wall_seconds;
    /**
     * From the request to the first bytes.
     */
    double time_to_first_chunk_seconds;
} fb_report;

/**
 * The daemon at a glance. Set `size` to `sizeof(fb_daemon_status)`.
 */
typedef struct fb_daemon_status {
    /**
     * `sizeof(fb_daemon_status)`.
     */
    size_t size;
    /**
     * The most host memory it may hold.
     */
    uint64_t ram_budget_bytes;
    /**
     * Readable and not lent.
     */
    uint64_t ram_cached_bytes;
    /**
     * Lent to clients.
     */
    uint64_t ram_leased_bytes;
    /**
     * The most local disk it may hold; 0 without that tier.
     */
    uint64_t nvme_budget_bytes;
    /**
     * Bytes stored on local disk.
     */
    uint64_t nvme_stored_bytes;
    /**
     * Loads that run.
     */
    uint64_t loads;
    /**
     * How long it has run.
     */
    double uptime_seconds;
    /**
     * 1 if it is shutting down; else 0.
     */
    int32_t draining;
    /**
     * Zero.
     */
    int32_t reserved;
} fb_daemon_status;

/**
 * What a tensor is, and where. Set `size` to `sizeof(fb_tensor_info)`. Everything that it points
 * to can be read until the tensor is released, and must not be written.
 */
typedef struct fb_tensor_info {
    /**
     * `sizeof(fb_tensor_info)`.
     */
    size_t size;
    /**
     * Its name; the key of a whole object.
     */
    const char *name;
    /**
     * Element type as the file writes it, such as `BF16`; `U8` for a whole object.
     */
    const char *dtype;
    /**
     * The key of the object (file) that holds it.
     */
    const char *object;
    /**
     * `ndim` dimensions, outermost first.
     */
    const uint64_t *shape;
    /**
     * How many dimensions it has.
     */
    size_t ndim;
    /**
     * Its bytes in host memory, row-major, aligned as in the file. NULL only if it is not lent: in
     * what `fb_load_describe_tensor` and `fb_load_describe_object` say.
     */
    const void *data;
    /**
     * How many bytes it has.
     */
    uint64_t bytes;
    /**
     * 1 if the bytes are a private copy, because the window is too small to lend them; else 0.
     */
    int32_t is_copy;
    /**
     * Zero.
     */
    int32_t reserved;
} fb_tensor_info;

/**
 * Along which dimension some tensors are cut. It never grows.
 */
typedef struct fb_shard_rule {
    /**
     * A glob over names of tensors.
     */
    const char *tensors;
    /**
     * The dimension; 0 is the outermost. A tensor without it is not cut.
     */
    uint32_t dim;
    /**
     * Zero.
     */
    uint32_t reserved;
} fb_shard_rule;

/**
 * What to load, and how. Set `size` to `sizeof(fb_load_options)` and everything else to zero, then
 * what you need. Everything it points to is read during the call only.
 */
typedef struct fb_load_options {
    /**
     * `sizeof(fb_load_options)`.
     */
    size_t size;
    /**
     * The checkpoint: `s3://`, `gs://`, `az://`, `http(s)://` or `file:///`. Required.
     */
    const char *uri;
    /**
     * The budget of the whole load, from the call to the report, in milliseconds; 0: none.
     */
    uint64_t deadline_ms;
    /**
     * Only tensors whose name matches one of these globs; none: all.
     */
    const char *const *tensors;
    /**
     * How many globs `tensors` has.
     */
    size_t tensor_count;
    /**
     * Only objects (files) whose key matches one of these globs; none: all.
     */
    const char *const *objects;
    /**
     * How many globs `objects` has.
     */
    size_t object_count;
    /**
     * The id of the load, 1 to 64 of `[A-Za-z0-9._-]`; NULL: the daemon chooses.
     */
    const char *load_id;
    /**
     * `FB_LANE_INTERACTIVE` or `FB_LANE_PREFETCH`.
     */
    int32_t lane;
    /**
     * `FB_VERIFY_STREAM` or `FB_VERIFY_STRICT`.
     */
    int32_t verify;
    /**
     * `FB_PLACE_ANYWHERE`, `FB_PLACE_GPU` or `FB_PLACE_NUMA_NODE`. What cannot be had is no error.
     */
    int32_t placement;
    /**
     * With `FB_PLACE_NUMA_NODE`: which.
     */
    uint32_t numa_node;
    /**
     * With `FB_PLACE_GPU`: its address, as nvidia-smi prints it: `00000000:3B:00.0`.
     */
    const char *gpu;
    /**
     * The device that tensors will be copied to, opened with the same client; NULL: none. The
     * daemon is told, and unless `placement` says otherwise bytes should lie near it.
     */
    const struct fb_device *device;
    /**
     * With `ranks`: which rank's slice of every tensor is loaded, from 0 on.
     */
    uint32_t rank;
    /**
     * How many ranks share the checkpoint (tensor parallelism); 0: no slices. Slices come by
     * `fb_load_to_device`, and only the bytes that they need are fetched.
     */
    uint32_t ranks;
    /**
     * With `ranks`: the dimension that tensors are cut along which no rule matches.
     */
    uint32_t dim;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * With `ranks`: how some tensors are cut otherwise. The first rule that matches counts.
     */
    const struct fb_shard_rule *rules;
    /**
     * How many rules `rules` has.
     */
    size_t rule_count;
} fb_load_options;

/**
 * What a load is of. Set `size` to `sizeof(fb_load_info)`. The texts live until the load is
 * closed.
 */
typedef struct fb_load_info {
    /**
     * `sizeof(fb_load_info)`.
     */
    size_t size;
    /**
     * The load's id.
     */
    const char *load_id;
    /**
     * The URI as resolved.
     */
    const char *uri;
    /**
     * What it resolved to: `b3:` and 64 hexadecimal digits.
     */
    const char *revision;
    /**
     * Objects of the checkpoint.
     */
    uint64_t object_count;
    /**
     * Tensors of the checkpoint.
     */
    uint64_t tensor_count;
    /**
     * Size of the checkpoint.
     */
    uint64_t checkpoint_bytes;
    /**
     * How many bytes will be handed over.
     */
    uint64_t granted_bytes;
    /**
     * How many bytes can be held at one time. Hold at most about half of it.
     */
    uint64_t window_bytes;
} fb_load_info;

/**
 * Where a tensor, a slice of one, or an object goes to. It never grows.
 */
typedef struct fb_target {
    /**
     * The tensor's name, or the object's key if there is no such tensor.
     */
    const char *name;
    /**
     * Where: a `CUdeviceptr`, or a pointer as a number if the device is `host`.
     */
    uint64_t address;
    /**
     * How many bytes are there: at least as many as it needs.
     */
    uint64_t bytes;
} fb_target;

/**
 * What `fb_load_all` calls for each tensor. 0: go on; anything else: end the load. It must return:
 * no exception, no `longjmp`. What it is given is valid until it returns.
 */
typedef int32_t (*fb_tensor_callback)(void *context, const struct fb_tensor_info *tensor);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the interface that the library has. It has to be at least the `FB_ABI_VERSION` of
 * the header that the program was compiled with.
 *
 * Threads: any.
 */
uint32_t fb_abi_version(void);

/**
 * What a status means, in a few words. The text lives for ever.
 *
 * Threads: any.
 */
const char *fb_strerror(int32_t status);

/**
 * Writes one sentence about the last call that failed with this handle (a client, load, ...), with
 * a NUL and cut to `bytes`, to `buffer`, which may be NULL. With NULL, or a handle that is closed,
 * it is about the last call of this thread that failed. A call that works leaves it as it is.
 * Returns the bytes that the sentence needs, its NUL included.
 *
 * Threads: any.
 */
size_t fb_last_error(const void *handle, char *buffer, size_t bytes);

/**
 * Connects to the daemon at `endpoint`, `unix:///run/forebay/forebay.sock`, and sets `*client`.
 *
 * Ownership: the caller closes the client with `fb_close`.
 * Threads: any. The client can be used by several threads at once.
 * Errors: `FB_INVALID_ARGUMENT`, `FB_UNAVAILABLE`, `FB_PERMISSION_DENIED`. Then `*client` is NULL.
 */
int32_t fb_connect(const char *endpoint, struct fb_client **client);

/**
 * Connects as a caller who is known by more than its uid: by the token of a security domain, and over
 * TCP by a certificate. Sets `*client`.
 *
 * Ownership: the caller closes the client with `fb_close`.
 * Threads: any. The client can be used by several threads at once.
 * Errors: those of `fb_connect`. A file that cannot be read, a token that is none, and settings that
 * contradict each other are `FB_INVALID_ARGUMENT`. Who has the wrong token or certificate is told so
 * by the first call. Then `*client` is NULL.
 */
int32_t fb_connect_with(const struct fb_connect_options *options,
                        struct fb_client **client);

/**
 * Closes a client. Its loads, tensors, devices and streams stay usable until they are closed and
 * released; loads are opened no more. NULL is no error.
 *
 * Threads: any, also while other threads use the client: their calls end as if it were open.
 * Errors: `FB_BAD_HANDLE`.
 */
int32_t fb_close(struct fb_client *client);

/**
 * Fetches a checkpoint into a tier of this node and keeps it, and waits until it is there.
 * `report` may be NULL.
 *
 * Threads: any, also several at once on one client.
 * Errors: all but `FB_CANCELLED` and `FB_BUSY`.
 */
int32_t fb_prefetch(struct fb_client *client,
                    const struct fb_prefetch_options *options,
                    struct fb_report *report);

/**
 * Asks the daemon how it is.
 *
 * Threads: any, also several at once on one client.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_UNAVAILABLE`, `FB_PERMISSION_DENIED`.
 */
int32_t fb_status(struct fb_client *client, struct fb_daemon_status *status);

/**
 * Opens a device for loads of `client` and sets `*device`. `spec` is `cuda:N`, an NVIDIA GPU as
 * the driver counts; `host`, memory of this process, copied to by the CPU; or `fake:GBPS`, which
 * takes the time that a device of so many 1e9 bytes a second takes, and writes nothing. The
 * driver's library is loaded here, and the GPU's primary context retained. Open a device once and
 * use it for every load: the daemon's memory is registered with it once, in the background.
 *
 * Ownership: the caller closes the device with `fb_device_close`.
 * Threads: any. The device can be used by several threads at once.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`; `FB_UNAVAILABLE` if there is no such device or
 * no driver. Then `*device` is NULL.
 */
int32_t fb_device_open(struct fb_client *client, const char *spec, struct fb_device **device);

/**
 * Closes a device. Loads and streams on it stay usable until they are closed. The GPU's context is
 * released with the last of them. NULL is no error.
 *
 * Threads: any, also while other threads use the device.
 * Errors: `FB_BAD_HANDLE`.
 */
int32_t fb_device_close(struct fb_device *device);

/**
 * Lets tensors be copied on a stream and sets `*stream`. `native` is the caller's own `CUstream`
 * (or `cudaStream_t`) of the GPU's primary context, the one that the CUDA runtime uses; copies are
 * in order with whatever else is on it. It stays the caller's: it must not be destroyed before
 * `fb_stream_close` has returned. NULL is the default stream, as everywhere in CUDA; the default
 * stream of a thread (`CU_STREAM_PER_THREAD`) is refused. For other devices `native` is NULL. Each
 * open stream has a thread, which sleeps while nothing is copied: keep the stream open.
 *
 * Ownership: the caller closes the stream with `fb_stream_close`.
 * Threads: any. The stream can be used by several threads at once.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_RESOURCE_EXHAUSTED`, `FB_UNAVAILABLE`. Then
 * `*stream` is NULL.
 */
int32_t fb_stream_open(struct fb_device *device, void *native, struct fb_stream **stream);

/**
 * Waits until every copy that was started on the stream is done. Work of the caller's own on the
 * same stream is waited for only as far as it is ahead of them.
 *
 * Threads: any, also several at once.
 * Errors: `FB_BAD_HANDLE`; `FB_UNAVAILABLE` if a copy failed since the last call, with what the
 * driver said of the first.
 */
int32_t fb_stream_wait(struct fb_stream *stream);

/**
 * Waits for the copies on a stream and closes it. The caller's own stream is left as it is. NULL
 * is no error.
 *
 * Threads: any, also while others wait for the stream. No other may be inside of `fb_copy_tensor`
 * with it.
 * Errors: `FB_BAD_HANDLE`. A copy that failed is none: `fb_stream_wait` tells.
 */
int32_t fb_stream_close(struct fb_stream *stream);

/**
 * Starts to copy all bytes of a tensor or object to `destination`, where the caller has `bytes`
 * bytes, at least as many as the tensor; comes back without waiting for the copy, unless the bytes
 * have to be staged. The load must have been opened with the device of `stream`. `destination` is
 * a `CUdeviceptr`, or a pointer as a number if the device is `host`; for `fake:GBPS` it is any
 * number but 0. The tensor may be released at once: its bytes are held until the copy is done.
 * `copy` may be NULL: `fb_stream_wait` and the stream itself tell then when it is done.
 *
 * Ownership: the caller releases `*copy` with `fb_copy_release`. Until the copy is done, the
 * memory at `destination` must stay and be used by nobody else but in order on the stream.
 * Threads: any, also several at once, and while another is inside of the load.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`, `FB_RESOURCE_EXHAUSTED`, `FB_UNAVAILABLE`. Then
 * `*copy` is NULL and nothing is under way.
 */
int32_t fb_copy_tensor(const struct fb_tensor *tensor,
                       struct fb_stream *stream,
                       uint64_t destination,
                       uint64_t bytes,
                       struct fb_copy **copy);

/**
 * Whether a copy is done: `FB_OK`, or `FB_PENDING` while it is not. Does not wait.
 *
 * Threads: any, also several at once.
 * Errors: `FB_BAD_HANDLE`, `FB_UNAVAILABLE`.
 */
int32_t fb_copy_query(const struct fb_copy *copy);

/**
 * Waits until a copy is done.
 *
 * Threads: any, also several at once.
 * Errors: `FB_BAD_HANDLE`, `FB_UNAVAILABLE`.
 */
int32_t fb_copy_wait(const struct fb_copy *copy);

/**
 * Gives the handle of a copy back. The copy goes on. NULL is no error.
 *
 * Threads: any, also while another waits for the copy.
 * Errors: `FB_BAD_HANDLE`.
 */
int32_t fb_copy_release(struct fb_copy *copy);

/**
 * Says what a tensor is and where its bytes are.
 *
 * Threads: any, also several at once.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
 */
int32_t fb_tensor_get_info(const struct fb_tensor *tensor, struct fb_tensor_info *info);

/**
 * Gives the bytes of a tensor or object back. They and everything its info points to must not be
 * read any more; copies of it that `fb_copy_tensor` started go on, and give back what they read
 * when they are done. The daemon is told with the next call on the client or one of its loads.
 * NULL is no error.
 *
 * Threads: any, also while another is inside of the load.
 * Errors: `FB_BAD_HANDLE`.
 */
int32_t fb_tensor_release(struct fb_tensor *tensor);

/**
 * Starts a load and sets `*load`. Returns when it is known what the checkpoint consists of; bytes
 * come with `fb_load_next_tensor` or `fb_load_next_object`.
 *
 * Ownership: the caller closes the load with `fb_load_close`, finished or not.
 * Threads: any, also several at once on one client; each gets a load of its own.
 * Errors: all but `FB_CANCELLED` and `FB_BUSY`. Then `*load` is NULL.
 */
int32_t fb_load_open(struct fb_client *client,
                     const struct fb_load_options *options,
                     struct fb_load **load);

/**
 * Says what a load is of.
 *
 * Threads: any, also while another is inside of the load.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
 */
int32_t fb_load_get_info(const struct fb_load *load, struct fb_load_info *info);

/**
 * Describes tensor `index`, from 0 on, of those that the load will bring, in the order of the
 * checkpoint: of a load of slices the slice, with its shape and size. `FB_END` behind the last.
 * The texts and the shape live until the load is closed; `data` is NULL.
 *
 * Threads: any, also while another is inside of the load.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
 */
int32_t fb_load_describe_tensor(const struct fb_load *load,
                                uint64_t index,
                                struct fb_tensor_info *info);

/**
 * Describes object (file) `index`, from 0 on, of those that the load selects, of which it may
 * bring only some bytes. `FB_END` behind the last. Otherwise as `fb_load_describe_tensor`.
 *
 * Threads: any, also while another is inside of the load.
 * Errors: `FB_BAD_HANDLE`, `FB_INVALID_ARGUMENT`.
 */
int32_t fb_load_describe_object(const struct fb_load *load,
                                uint64_t index,
                                struct fb_tensor_info *info);

/**
 * Waits for the next tensor that was asked for, in the order in which they become readable, and
 * sets `*tensor`; `FB_END` when all have come. A load is read by tensors or by objects, not by
 * both.
 *
 * Ownership: the caller releases the tensor with `fb_tensor_release`. Release early: a load that
 * has lent its window (see `fb_load_info`) waits for releases.
 * Threads: any, one at a time per load; a second one gets `FB_BUSY`.
 * Errors: all but `FB_CANCELLED`. Then, and with `FB_END`, `*tensor` is NULL.
 */
int32_t fb_load_next_tensor(struct fb_load *load, struct fb_tensor **tensor);

/**
 * Waits for the next object (file) that was asked for, whole, and sets `*object`; `FB_END` when
 * all have come. Its info is that of a tensor of type `U8` with one dimension.
 *
 * Ownership, threads, errors: as for `fb_load_next_tensor`. A load of some tensors has no
 * whole objects: `FB_INVALID_ARGUMENT`.
 */
int32_t fb_load_next_object(struct fb_load *load, struct fb_tensor **object);

/**
 * Copies what `targets` names to where it says, waits until all of it is there, and ends the load:
 * the plain way to a device, without streams. For a load opened with a device of which nothing was
 * read. With `ranks`, a tensor's target gets the rank's slice. What no target names is not copied.
 * Sizes are those of `fb_load_describe_tensor`, and of `fb_load_describe_object` for a whole
 * object, which only a load of all tensors has. `report` may be NULL. The load remains to be
 * closed, and gives `fb_load_report_json`.
 *
 * Ownership: the memory stays the caller's. Until this returns it is used by nobody else.
 * Threads: any, one at a time per load; a second one gets `FB_BUSY`.
 * Errors: all but `FB_CANCELLED`. After one, nothing is under way, and the targets may be written
 * in part. After `FB_BUSY`, or if the pointers of this call were wrong, call again; after any
 * other the load can only be closed.
 */
int32_t fb_load_to_device(struct fb_load *load,
                          const struct fb_target *targets,
                          size_t target_count,
                          struct fb_report *report);

/**
 * Ends a load: takes what is still to come without looking at it, waits for the copies of its
 * tensors that are under way, and sets `*report`, which may be NULL. The load remains to be
 * closed, and gives `fb_load_report_json`.
 *
 * Threads: any, one at a time per load; a second one gets `FB_BUSY`.
 * Errors: all but `FB_CANCELLED`. `FB_BUSY` if tensors of the load are not released: release them
 * and call again. After any other error the load can only be closed.
 */
int32_t fb_load_finish(struct fb_load *load, struct fb_report *report);

/**
 * Writes the whole report of a finished load as a JSON object, with a NUL and cut to `bytes`, to
 * `buffer`, which may be NULL. Returns the bytes that it needs, its NUL included; 0 if there is no
 * report, for the reason that `fb_last_error` gives.
 *
 * Threads: any, one at a time per load.
 */
size_t fb_load_report_json(const struct fb_load *load, char *buffer, size_t bytes);

/**
 * Closes a load, and cancels it if it is not finished. Its tensors stay readable until they are
 * released. NULL is no error.
 *
 * Threads: any. While another is inside of the load: `FB_BUSY`, and the load stays open.
 * Errors: `FB_BAD_HANDLE`, `FB_BUSY`.
 */
int32_t fb_load_close(struct fb_load *load);

/**
 * Loads everything that was asked for in one call: `each` is called with every tensor as it
 * becomes readable, in the calling thread, and the tensor is released when it returns. `report`
 * may be NULL.
 *
 * Threads: any, also several at once on one client. `SIGPIPE` is blocked while `each` runs.
 * Errors: all but `FB_BUSY`. `FB_CANCELLED` if `each` returned another number than 0.
 */
int32_t fb_load_all(struct fb_client *client,
                    const struct fb_load_options *options,
                    fb_tensor_callback each,
                    void *context,
                    struct fb_report *report);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FOREBAY_H */
