#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double half(uint16_t bits) {
    int    exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent       ? ldexp(1024 + fraction, exponent - 25)
                                  : ldexp(fraction, -24);
    return bits & 0x8000 ? -value : value;
}

uint16_t ref_f16(double value) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    value = fabs(value);
    if (isinf(value)) return sign | 0x7C00;
    if (isnan(value)) return 0x7E00;
    if (value == 0) return sign;
    int    exponent;
    double fraction = frexp(value, &exponent); /* 0.5 .. 1 */
    if (exponent < -13) return sign | (uint16_t)nearbyint(ldexp(value, 24));
    return sign | (uint16_t)(((exponent + 14) << 10) + (int)nearbyint(ldexp(fraction, 11)) - 1024);
}

double ref_get(const void *row, int32_t dtype, int i) {
    const unsigned char *bytes = row;
    uint16_t             bits;
    uint32_t             word;
    float                value;
    switch (dtype) {
    case LIM_DTYPE_F32: memcpy(&value, bytes + 4 * i, 4); return value;
    case LIM_DTYPE_F16: memcpy(&bits, bytes + 2 * i, 2); return half(bits);
    case LIM_DTYPE_BF16:
        memcpy(&bits, bytes + 2 * i, 2);
        word = (uint32_t)bits << 16;
        memcpy(&value, &word, 4);
        return value;
    case LIM_DTYPE_Q8_0:
        bytes += i / 32 * 34;
        memcpy(&bits, bytes, 2);
        return half(bits) * (int8_t)bytes[2 + i % 32];
    default:
        bytes += i / 32 * 18;
        memcpy(&bits, bytes, 2);
        return half(bits) * ((i % 32 < 16 ? bytes[2 + i % 32] & 15 : bytes[2 + i % 32 - 16] >> 4) - 8);
    }
}

void ref_put(void *row, int32_t dtype, const double *values, int elements) {
    unsigned char *bytes = row;
    uint16_t       bits, quarter = ref_f16(0.25);
    uint32_t       word;
    for (int i = 0; i < elements; i++) {
        float value = (float)values[i];
        int   q = (int)(values[i] * 4);
        switch (dtype) {
        case LIM_DTYPE_F32: memcpy(bytes + 4 * i, &value, 4); break;
        case LIM_DTYPE_F16:
            bits = ref_f16(values[i]);
            memcpy(bytes + 2 * i, &bits, 2);
            break;
        case LIM_DTYPE_BF16:
            memcpy(&word, &value, 4);
            bits = (uint16_t)(word >> 16);
            memcpy(bytes + 2 * i, &bits, 2);
            break;
        case LIM_DTYPE_Q8_0:
            memcpy(bytes + i / 32 * 34, &quarter, 2);
            bytes[i / 32 * 34 + 2 + i % 32] = (unsigned char)(int8_t)q;
            break;
        default: {
            unsigned char *block = bytes + i / 32 * 18, *at = block + 2 + i % 16;
            memcpy(block, &quarter, 2);
            *at = i % 32 < 16 ? (unsigned char)(q + 8) : (unsigned char)(*at | (q + 8) << 4);
        }
        }
    }
}

size_t ref_row(int32_t dtype, int elements) {
    switch (dtype) {
    case LIM_DTYPE_F32: return 4 * (size_t)elements;
    case LIM_DTYPE_Q8_0: return 34 * (size_t)elements / 32;
    case LIM_DTYPE_Q4_0: return 18 * (size_t)elements / 32;
    default: return 2 * (size_t)elements;
    }
}

static int64_t position_of(const lim_attention *a, int64_t slot) { return a->positions ? a->positions[slot] : slot; }

int ref_visible(const lim_attention *a, int32_t *slots) {
    int n = 0;
    for (int64_t i = 0; i < a->n_slots; i++) {
        int64_t position = position_of(a, i);
        if (position < 0 || position > a->query_positions[0]) continue;
        if (a->mask && half(a->mask[i]) == -INFINITY) continue;
        int at = n++;
        while (at > 0 && position_of(a, slots[at - 1]) > position) slots[at] = slots[at - 1], at--;
        slots[at] = (int32_t)i;
    }
    return n;
}

static const char *row_of(const void *base, int64_t slot, int64_t slot_stride, int64_t head, int64_t head_stride) {
    return (const char *)base + slot * slot_stride + head * head_stride;
}

void ref_logits(const lim_attention *a, const int32_t *slots, int n, double *logits) {
    double query[LIM_MAX_HEAD_DIM];
    double scale = a->scale != 0 ? a->scale : 1 / sqrt(a->head_dim);
    for (int h = 0; h < a->heads; h++) {
        int         kv = h / (a->heads / a->kv_heads);
        const char *q = row_of(a->query, 0, 0, h, a->query_head_stride);
        for (int d = 0; d < a->head_dim; d++) query[d] = ref_get(q, a->query_dtype, d);
        for (int i = 0; i < n; i++) {
            const char *k = row_of(a->key, slots[i], a->key_token_stride, kv, a->key_head_stride);
            double      x = 0;
            for (int d = 0; d < a->head_dim; d++) x += query[d] * ref_get(k, a->key_dtype, d);
            x *= scale;
            if (a->softcap > 0) x = a->softcap * tanh(x / a->softcap);
            if (a->mask) x += (a->alibi_slopes ? a->alibi_slopes[h] : 1) * half(a->mask[slots[i]]);
            logits[(size_t)h * n + i] = x;
        }
    }
}

void ref_attend(const lim_attention *a, const int32_t *slots, int n, double *output) {
    double *logits = malloc(sizeof *logits * (size_t)a->heads * (size_t)(n + 1));
    ref_logits(a, slots, n, logits);
    for (int h = 0; h < a->heads; h++) {
        int     kv = h / (a->heads / a->kv_heads);
        double *x = logits + (size_t)h * n, *o = output + (size_t)h * a->value_dim, top = -INFINITY, sum = 0;
        for (int i = 0; i < n; i++) top = fmax(top, x[i]);
        if (a->sinks) top = fmax(top, a->sinks[h]), sum = exp(a->sinks[h] - top);
        for (int d = 0; d < a->value_dim; d++) o[d] = 0;
        for (int i = 0; i < n; i++) {
            const char *v = row_of(a->value, slots[i], a->value_token_stride, kv, a->value_head_stride);
            double      p = exp(x[i] - top);
            sum += p;
            for (int d = 0; d < a->value_dim; d++) o[d] += p * ref_get(v, a->value_dtype, d);
        }
        for (int d = 0; d < a->value_dim && sum > 0; d++) o[d] /= sum;
    }
    free(logits);
}

ref_split ref_divide(int n, int budget, double recency, int sinks) {
    int k = n < budget ? n : budget;
    int recent = (int)ceil(k * recency - 1e-9);
    if (recent < 0) recent = 0;
    int mid = k - recent;
    if (recent <= sinks)
        sinks = 0;
    else
        recent -= sinks;
    return (ref_split){sinks, mid, recent};
}

void ref_select(const double *logits, int heads, int n, ref_split split, int32_t *set) {
    int   first = split.sinks, last = n - split.recent, candidates = last - first;
    int  *ranked = malloc(sizeof *ranked * (size_t)heads * (size_t)(candidates + 1));
    char *in = calloc((size_t)n, 1);
    for (int h = 0; h < heads; h++) { /* insertion sort: best first, a tie keeps the lower position in front */
        int *r = ranked + (size_t)h * candidates;
        for (int i = 0; i < candidates; i++) {
            int    at = i;
            double x = logits[(size_t)h * n + first + i];
            while (at > 0 && logits[(size_t)h * n + r[at - 1]] < x) r[at] = r[at - 1], at--;
            r[at] = first + i;
        }
    }
    int kept = 0;
    for (int rank = 0; rank < split.mid && kept < split.mid; rank++)
        for (int h = 0; h < heads && kept < split.mid; h++) {
            int t = ranked[(size_t)h * candidates + rank];
            if (!in[t]) in[t] = 1, kept++;
        }
    for (int i = 0; i < split.sinks; i++) in[i] = 1;
    for (int i = n - split.recent; i < n; i++) in[i] = 1;
    for (int i = 0, k = 0; i < n; i++)
        if (in[i]) set[k++] = i;
    free(ranked);
    free(in);
}
