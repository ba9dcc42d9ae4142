/* The machine of device.py in C, without any library: what a program needs in order to speak the protocol.
 *
 *     cc -O2 -o device examples/device.c -lm
 *
 * In a config: "machine": {"name": "process", "command": ["./device"]}; run with --own_units. It reads lines that are
 * written as this project writes them, with ", " and ": " between the parts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char name[32];
    long shape[3], size, bytes;
    double *x;
} array;

static array in[8], W, b, alpha, step; /* arrays of a message; parameters */
static int arrived;
static double *q, *p, *end_q, *end_p; /* the state, and the state at the end of the free pass */

static void stop(const char *words) {
    printf("{\"error\": \"%s\"}\n", words);
    fflush(stdout);
    exit(1);
}

static double *numbers(long size) {
    double *x = calloc(size > 0 ? size : 1, sizeof(double));
    return x ? x : (stop("no memory"), x);
}

/* The arrays that a line announces. An npy file ends in its numbers, so its header need not be read. */
static void receive_arrays(char *line) {
    arrived = 0;
    for (char *at = line; arrived < 8 && (at = strstr(at, "{\"name\": \"")); at++) {
        array *a = &in[arrived++];
        sscanf(at, "{\"name\": \"%31[^\"]", a->name);
        long *s = a->shape, known = sscanf(strstr(at, "\"shape\": ["), "\"shape\": [%ld, %ld, %ld", s, s + 1, s + 2);
        a->size = s[0] * (known > 1 ? s[1] : 1) * (known > 2 ? s[2] : 1);
        sscanf(strstr(at, "\"bytes\": "), "\"bytes\": %ld", &a->bytes);
    }
    for (int i = 0; i < arrived; i++) {
        for (long skip = in[i].bytes - 8 * in[i].size; skip > 0; skip--) getchar();
        in[i].x = numbers(in[i].size);
        if (fread(in[i].x, 8, in[i].size, stdin) != (size_t)in[i].size) exit(0);
    }
}

static array *get(const char *name) {
    for (int i = 0; i < arrived; i++)
        if (!strcmp(in[i].name, name)) return &in[i];
    stop("an array is missing");
    return NULL;
}

/* A message with these arrays, all of the shape of the drives. The header of each npy file has 128 bytes. */
static void send_arrays(const char **names, double **arrays, int count, const array *like) {
    const long *s = like->shape;
    printf("{\"arrays\": [");
    for (int i = 0; i < count; i++)
        printf("%s{\"name\": \"%s\", \"shape\": [%ld, %ld, %ld], \"bytes\": %ld}", i ? ", " : "", names[i], s[0], s[1],
               s[2], 128 + 8 * like->size);
    printf("]}\n");
    for (int i = 0; i < count; i++) {
        char header[118];
        int length = snprintf(header, sizeof header,
                              "{'descr': '<f8', 'fortran_order': False, 'shape': (%ld, %ld, %ld), }", s[0], s[1], s[2]);
        memset(header + length, ' ', sizeof header - length);
        header[117] = '\n';
        fwrite("\x93NUMPY\x01\x00\x76\x00", 1, 10, stdout); /* version 1.0; a header of 118 = 0x76 bytes follows */
        fwrite(header, 1, sizeof header, stdout);
        fwrite(arrays[i], 8, like->size, stdout);
    }
    fflush(stdout);
}

/* All steps of a batch from the state (q, p), and what is measured: ends, halves, momenta before and after, starts. */
static void play(const array *drives, const double *nudges, double **out) {
    long osc = drives->shape[2], row = drives->shape[1] * osc;
    for (long i = 0; i < drives->size; i++) {
        long k = i % row, o = k % osc;
        out[4][i] = q[k];
        p[k] += nudges ? nudges[i] : 0;
        out[2][i] = p[k];
        double half = out[1][i] = q[k] + 0.5 * step.x[o] * p[k];
        p[k] -= step.x[o] * (alpha.x[o] * half + tanh(W.x[o] * half + drives->x[i] + b.x[o]));
        out[3][i] = p[k];
        out[0][i] = q[k] = half + 0.5 * step.x[o] * p[k];
    }
}

int main(void) {
    static char line[65536];
    static const char *names[] = {"positions", "momenta_before", "momenta_after", "starts"};
    while (fgets(line, sizeof line, stdin)) {
        receive_arrays(line);
        if (strstr(line, "\"call\": \"hello\"")) {
            printf("{\"version\": 1, \"limits\": {\"holds_state\": true, \"momenta\": true}, \"arrays\": []}\n");
            fflush(stdout);
        } else if (strstr(line, "\"call\": \"program\"")) {
            free(W.x), free(b.x), free(alpha.x), free(step.x);
            W = *get("W_diag"), b = *get("b"), alpha = *get("alpha"), step = *get("step");
            printf("{\"arrays\": []}\n");
            fflush(stdout);
            continue; /* the parameters stay */
        } else {
            int echo = strstr(line, "\"call\": \"echo\"") != NULL;
            array *drives = get("drives");
            long row = drives->shape[1] * drives->shape[2];
            double *out[5];
            if (echo && !end_q) stop("an echo needs a run before it");
            for (int i = 0; i < 5; i++) out[i] = numbers(drives->size);
            q = numbers(row), p = numbers(row);
            for (long k = 0; echo && k < row; k++) q[k] = end_q[k], p[k] = -end_p[k];
            play(drives, echo ? get("nudges")->x : NULL, out);
            if (echo) {
                send_arrays(names, out + 1, 4, drives);
                free(q), free(p);
            } else {
                send_arrays(names, out, 1, drives);
                free(end_q), free(end_p);
                end_q = q, end_p = p;
            }
            for (int i = 0; i < 5; i++) free(out[i]);
        }
        for (int i = 0; i < arrived; i++) free(in[i].x);
    }
    return 0;
}
