/* Connects as a caller of a security domain, and over TCP with TLS, and asks the daemon how it is.
 *
 *   ./connect ENDPOINT [--token TOKEN] [--token-file FILE] [--tls-ca FILE]
 *                      [--tls-cert FILE --tls-key FILE] [--load URI]
 *
 * Prints the statuses of the calls by their names, and the sentence of the one that failed to stderr.
 * Exit code 0 if every call worked. A token on a command line can be read by others: use a file.
 */
#include <stdio.h>
#include <string.h>

#include "forebay.h"

static int answered(const char *call, int32_t status)
{
    char text[1024];
    printf("%s %d\n", call, (int)status);
    if (status < 0) {
        fb_last_error(NULL, text, sizeof text);
        fprintf(stderr, "%s: %s: %s\n", call, fb_strerror(status), text);
    }
    return status >= 0;
}

static int32_t count(void *context, const fb_tensor_info *tensor)
{
    *(uint64_t *)context += tensor->bytes;
    return 0;
}

int main(int argc, char **argv)
{
    fb_connect_options options = {0};
    fb_daemon_status status = {0};
    fb_load_options load = {0};
    fb_client *client = NULL;
    uint64_t bytes = 0;
    int at, good;
    options.size = sizeof options;
    status.size = sizeof status;
    load.size = sizeof load;
    if (argc < 2 || fb_abi_version() < FB_ABI_VERSION) {
        return 2;
    }
    options.endpoint = argv[1];
    for (at = 2; at + 1 < argc; at += 2) {
        if (strcmp(argv[at], "--token") == 0) {
            options.token = argv[at + 1];
        } else if (strcmp(argv[at], "--token-file") == 0) {
            options.token_file = argv[at + 1];
        } else if (strcmp(argv[at], "--tls-ca") == 0) {
            options.tls_ca_file = argv[at + 1];
        } else if (strcmp(argv[at], "--tls-cert") == 0) {
            options.tls_cert_file = argv[at + 1];
        } else if (strcmp(argv[at], "--tls-key") == 0) {
            options.tls_key_file = argv[at + 1];
        } else if (strcmp(argv[at], "--load") == 0) {
            load.uri = argv[at + 1];
        } else {
            return 2;
        }
    }
    good = answered("connect", fb_connect_with(&options, &client));
    if (good) {
        good = answered("status", fb_status(client, &status));
    } else if (client != NULL) {
        return 2;
    }
    if (good && load.uri != NULL) {
        good = answered("load", fb_load_all(client, &load, count, &bytes, NULL));
        printf("bytes %lu\n", (unsigned long)bytes);
    }
    fb_close(client);
    return good ? 0 : 1;
}
