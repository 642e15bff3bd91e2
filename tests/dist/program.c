/* What a program of somebody else's does with the library: an engine, a decoder, attention. Ends with 1 if the
 * output is not what softmax attention over its tokens is. */
#include <lessismore.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS = 40,
       DIM = 32 };

static int refused(const char *what) {
    fprintf(stderr, "%s: %s\n", what, lim_last_error());
    return 1;
}

int main(void) {
    static float query[DIM], key[TOKENS][DIM], value[TOKENS][DIM], output[DIM];
    for (int i = 0; i < DIM; i++) query[i] = sinf((float)i);
    for (int t = 0; t < TOKENS; t++) {
        for (int i = 0; i < DIM; i++) {
            key[t][i] = cosf((float)(t * DIM + i));
            value[t][i] = sinf((float)(t + 7 * i));
        }
    }
    if (strcmp(lim_version_string(), LIM_VERSION_STRING) != 0) {
        fprintf(stderr, "the header is of %s, the library of %s\n", LIM_VERSION_STRING, lim_version_string());
        return 1;
    }

    lim_engine_params params;
    lim_engine       *engine;
    lim_decoder      *decoder;
    if (lim_engine_default_params(&params, sizeof params) != LIM_OK) return refused("lim_engine_default_params");
    params.n_layers = 1;
    params.n_threads = 1;
    if (lim_engine_create(&params, &engine) != LIM_OK) return refused("lim_engine_create");
    const lim_decoder_params shape = {.struct_size = sizeof shape, .device = LIM_DEVICE_CPU, .max_rows = 1};
    if (lim_decoder_create(engine, &shape, &decoder) != LIM_OK) return refused("lim_decoder_create");
    const int32_t       tokens = TOKENS;
    const lim_attention attention = {
        .struct_size = sizeof attention,
        .n_rows = 1,
        .query = query,
        .key = key,
        .value = value,
        .output = output,
        .key_token_stride = sizeof key[0],
        .value_token_stride = sizeof value[0],
        .query_dtype = LIM_DTYPE_F32,
        .key_dtype = LIM_DTYPE_F32,
        .value_dtype = LIM_DTYPE_F32,
        .output_dtype = LIM_DTYPE_F32,
        .lengths = &tokens,
        .n_slots = TOKENS,
        .heads = 1,
        .kv_heads = 1,
        .head_dim = DIM,
        .value_dim = DIM,
    };
    if (lim_decoder_attend(decoder, &attention) != LIM_OK) return refused("lim_decoder_attend");

    double want[DIM] = {0}, sum = 0;
    for (int t = 0; t < TOKENS; t++) {
        double logit = 0;
        for (int i = 0; i < DIM; i++) logit += (double)query[i] * key[t][i];
        const double weight = exp(logit / sqrt(DIM));
        for (int i = 0; i < DIM; i++) want[i] += weight * value[t][i];
        sum += weight;
    }
    for (int i = 0; i < DIM; i++) {
        if (!(fabs(output[i] - want[i] / sum) < 1e-5)) {
            fprintf(stderr, "element %d is %g, not %g\n", i, output[i], want[i] / sum);
            return 1;
        }
    }
    lim_decoder_free(decoder);
    lim_engine_free(engine);
    printf("lessismore %s: right\n", lim_version_string());
    return 0;
}
