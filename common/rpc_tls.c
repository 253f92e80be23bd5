#include "common/rpc_tls.h"

#include "common/file.h"
#include "common/log.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { CERT, KEY, CA, N_FILES };

/* Zero where no such file was given. */
struct contents {
    struct file_stamp stamps[N_FILES];
    char *pem[N_FILES];
};

struct rpc_tls_files {
    const char *paths[N_FILES]; /* NULL: not given */
    pthread_mutex_t lock;       /* guards what follows */
    struct file_stamp looked_at[N_FILES];
    bool handed_out; /* to the server, which asks first when it starts */
    struct contents now;
};

static void free_contents(struct contents *contents)
{
    for (int i = 0; i < N_FILES; i++) {
        if (contents->pem[i]) {
            OPENSSL_cleanse(contents->pem[i], strlen(contents->pem[i]));
            free(contents->pem[i]);
        }
    }
    *contents = (struct contents){0};
}

static void take_stamps(const struct rpc_tls_files *files, struct file_stamp out[N_FILES])
{
    for (int i = 0; i < N_FILES; i++) {
        out[i] = (struct file_stamp){0};
        if (files->paths[i] && file_stamp_take(&out[i], files->paths[i])) {
            log_debug("tls: %s", status_text()); /* reading it will say so */
        }
    }
}

/* ---- is it what it is called? ---- */

static X509 *first_certificate(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *found = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

    BIO_free(bio);
    return found;
}

/* The empty password keeps OpenSSL from asking the terminal for one. */
static EVP_PKEY *private_key(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *found = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, (void *)"") : NULL;

    BIO_free(bio);
    return found;
}

static status check_pair(const struct rpc_tls_files *files, const struct contents *contents)
{
    X509 *cert = first_certificate(contents->pem[CERT]);
    EVP_PKEY *key = private_key(contents->pem[KEY]);
    status st = STATUS_OK;

    if (!cert) {
        st = status_fail(STATUS_INVALID, "%s: no certificate in PEM form", files->paths[CERT]);
    } else if (!key) {
        st = status_fail(STATUS_INVALID, "%s: no private key in PEM form, or an encrypted one",
                         files->paths[KEY]);
    } else if (X509_check_private_key(cert, key) != 1) {
        st = status_fail(STATUS_INVALID, "%s is not the key of the certificate %s",
                         files->paths[KEY], files->paths[CERT]);
    } else if (X509_cmp_current_time(X509_get0_notAfter(cert)) < 0) {
        log_warn("tls: certificate has expired file=%s", files->paths[CERT]);
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    return st;
}

static status check(const struct rpc_tls_files *files, const struct contents *contents)
{
    status st = contents->pem[CERT] ? check_pair(files, contents) : STATUS_OK;

    if (!st && contents->pem[CA]) {
        X509 *ca = first_certificate(contents->pem[CA]);
        if (!ca) {
            st = status_fail(STATUS_INVALID, "%s: no certificate in PEM form", files->paths[CA]);
        }
        X509_free(ca);
    }
    ERR_clear_error(); /* gRPC shares this thread's queue of errors */
    return st;
}

/* ---- reading ---- */

static status read_all(const struct rpc_tls_files *files, struct contents *out)
{
    status st = STATUS_OK;

    *out = (struct contents){0};
    take_stamps(files, out->stamps);
    for (int i = 0; i < N_FILES && !st; i++) {
        size_t bytes = 0;
        if (files->paths[i]) {
            st = file_read(&out->pem[i], &bytes, files->paths[i], RPC_TLS_MAX_FILE);
        }
    }
    if (!st) {
        st = check(files, out);
    }
    if (st) {
        free_contents(out);
    }
    return st;
}

static bool changed(const struct rpc_tls_files *files, const struct file_stamp stamps[N_FILES])
{
    for (int i = 0; i < N_FILES; i++) {
        if (!file_stamp_same(&stamps[i], &files->looked_at[i])) {
            return true;
        }
    }
    return false;
}

/* With the lock held. */
static bool refresh(struct rpc_tls_files *files)
{
    struct file_stamp stamps[N_FILES];
    struct contents fresh;

    take_stamps(files, stamps);
    if (!changed(files, stamps)) {
        return false;
    }
    memcpy(files->looked_at, stamps, sizeof(stamps));
    if (read_all(files, &fresh)) {
        log_warn("tls: the certificates stay as they were reason=\"%s\"", status_text());
        return false;
    }
    free_contents(&files->now);
    files->now = fresh;
    log_info("tls: certificates read again");
    return true;
}

bool rpc_tls_refresh(struct rpc_tls_files *files)
{
    pthread_mutex_lock(&files->lock);
    bool fresh = refresh(files);
    pthread_mutex_unlock(&files->lock);
    return fresh;
}

status rpc_tls_open(struct rpc_tls_files **out, const struct rpc_tls *tls)
{
    struct rpc_tls_files *files = calloc(1, sizeof(*files));

    if (!files) {
        return status_fail(STATUS_EXHAUSTED, "no memory for certificates");
    }
    files->paths[CERT] = tls->cert;
    files->paths[KEY] = tls->key;
    files->paths[CA] = tls->ca;
    pthread_mutex_init(&files->lock, NULL);
    status st = !tls->cert == !tls->key
                    ? read_all(files, &files->now)
                    : status_fail(STATUS_INVALID, "a certificate and its key go together");
    if (st) {
        rpc_tls_close(files);
        return st;
    }
    memcpy(files->looked_at, files->now.stamps, sizeof(files->looked_at));
    if (files->now.stamps[KEY].for_everyone) {
        log_warn("tls: every user of this machine can read file=%s advice=\"chmod 600\"", tls->key);
    }
    *out = files;
    return STATUS_OK;
}

void rpc_tls_close(struct rpc_tls_files *files)
{
    if (files) {
        free_contents(&files->now);
        pthread_mutex_destroy(&files->lock);
        free(files);
    }
}

/* ---- for gRPC ---- */

static grpc_ssl_server_certificate_config *server_config(const struct rpc_tls_files *files)
{
    const grpc_ssl_pem_key_cert_pair pair = {files->now.pem[KEY], files->now.pem[CERT]};

    /* gRPC wants some authority even where clients are not asked for certificates. */
    const char *ca = files->now.pem[CA] ? files->now.pem[CA] : files->now.pem[CERT];

    return grpc_ssl_server_certificate_config_create(ca, &pair, 1);
}

/* Asked at start and before each handshake. */
static grpc_ssl_certificate_config_reload_status fetch(void *context,
                                                       grpc_ssl_server_certificate_config **config)
{
    struct rpc_tls_files *files = context;
    grpc_ssl_certificate_config_reload_status answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;

    pthread_mutex_lock(&files->lock);
    if (refresh(files) || !files->handed_out) {
        files->handed_out = true;
        *config = server_config(files);
        answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    }
    pthread_mutex_unlock(&files->lock);
    return answer;
}

grpc_server_credentials *rpc_tls_server_credentials(struct rpc_tls_files *files)
{
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            files->paths[CA] ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                             : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            fetch, files));
}

grpc_channel_credentials *rpc_tls_channel_credentials(struct rpc_tls_files *files)
{
    pthread_mutex_lock(&files->lock);
    grpc_ssl_pem_key_cert_pair pair = {files->now.pem[KEY], files->now.pem[CERT]};
    grpc_channel_credentials *made =
        grpc_ssl_credentials_create(files->now.pem[CA], pair.cert_chain ? &pair : NULL, NULL, NULL);
    pthread_mutex_unlock(&files->lock);
    return made;
}
