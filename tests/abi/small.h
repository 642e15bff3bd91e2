/* A small model's tensors, right in every respect, to start a test from. */
#ifndef SMALL_H
#define SMALL_H

#include "check.h"
#include "lessismore.h"

enum { SMALL_LAYERS = 4,
       SMALL_HEADS = 4,
       SMALL_KV_HEADS = 2,
       SMALL_DIM = 64,
       SMALL_SLOTS = 64,
       SMALL_BUDGET = 16 };

typedef struct small {
    float    query[SMALL_HEADS * SMALL_DIM];
    float    key[SMALL_SLOTS * SMALL_KV_HEADS * SMALL_DIM];
    float    value[SMALL_SLOTS * SMALL_KV_HEADS * SMALL_DIM];
    float    output[SMALL_HEADS * SMALL_DIM];
    int32_t  positions[SMALL_SLOTS];
    uint16_t mask[SMALL_SLOTS];
    float    slopes[SMALL_HEADS], sinks[SMALL_HEADS];
    int32_t  query_position;
} small;

/* A decoder on the CPU. */
static const lim_decoder_params one_row = {.struct_size = sizeof(lim_decoder_params), .device = LIM_DEVICE_CPU, .max_rows = 1};

static inline lim_attention small_attention(small *s) {
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof s->query / 4; i++) s->query[i] = (float)random_int(&seed, -8, 8) / 8;
    for (size_t i = 0; i < sizeof s->key / 4; i++) s->key[i] = (float)random_int(&seed, -8, 8) / 8;
    for (size_t i = 0; i < sizeof s->value / 4; i++) s->value[i] = (float)random_int(&seed, -8, 8) / 8;
    for (int i = 0; i < SMALL_SLOTS; i++) s->positions[i] = i, s->mask[i] = 0;
    for (int i = 0; i < SMALL_HEADS; i++) s->slopes[i] = 1, s->sinks[i] = 0;
    memset(s->output, 0, sizeof s->output);
    s->query_position = SMALL_SLOTS - 1;
    return (lim_attention){
        .struct_size = sizeof(lim_attention),
        .n_rows = 1,
        .query = s->query,
        .key = s->key,
        .value = s->value,
        .output = s->output,
        .query_head_stride = SMALL_DIM * 4,
        .output_head_stride = SMALL_DIM * 4,
        .key_token_stride = SMALL_KV_HEADS * SMALL_DIM * 4,
        .key_head_stride = SMALL_DIM * 4,
        .value_token_stride = SMALL_KV_HEADS * SMALL_DIM * 4,
        .value_head_stride = SMALL_DIM * 4,
        .n_slots = SMALL_SLOTS,
        .query_positions = &s->query_position,
        .heads = SMALL_HEADS,
        .kv_heads = SMALL_KV_HEADS,
        .head_dim = SMALL_DIM,
        .value_dim = SMALL_DIM,
    };
}

static inline lim_engine_params small_params(void) {
    lim_engine_params params;
    OK(lim_engine_default_params(&params, sizeof params));
    params.n_layers = SMALL_LAYERS;
    params.budget = SMALL_BUDGET;
    params.n_threads = 2;
    return params;
}

/* A profile of a model of five layers, "m", as the library writes one where there is no target. */
#define SMALL_PROFILE                                                                                                                            \
    "{\"format\":1,\"library\":\"0.1.0\",\"fingerprint\":\"fc674c8a1217aebe\",\"model\":{\"layers\":5,\"first_layer\":0,\"last_layer\":0,"       \
    "\"heads\":0,\"kv_heads\":0,\"key_dim\":0,\"value_dim\":0,\"scale\":0,\"softcap\":0,\"max_bias\":0,\"weights\":\"model m\"},"                \
    "\"settings\":{\"budget\":64,\"recency\":0.25,\"sink_tokens\":4,\"policy\":\"union\",\"selections\":2},\"choice\":[2],\"worst_loss\":0.125," \
    "\"measured\":{\"measure\":\"\",\"steps\":60,\"tokens\":200,\"probe_budget\":16,\"reach\":2},"                                               \
    "\"loss\":[[0.125],[0.25,0.125],[0.375,0.25,0.125],[0.5,0.375,0.25,0.125]],\"loss_error\":[[0],[0,0],[0,0,0],[0,0,0,0]]}\n"

#endif
