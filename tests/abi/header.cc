// The header is clean C++ too, and the function table has what it declares.
#include "lessismore.h"

#include <cstdio>
#include <cstring>

int main() {
    const lim_api *api = lim_get_api(LIM_API_VERSION);
    if (!api || api->struct_size != sizeof(lim_api) || api->decoder_attend != lim_decoder_attend) return 1;
    void *const *functions = reinterpret_cast<void *const *>(reinterpret_cast<const char *>(api) + sizeof(size_t));
    for (size_t i = 0; i < (sizeof(lim_api) - sizeof(size_t)) / sizeof(void *); i++)
        if (!functions[i]) return 1;
    if (std::strcmp(api->version_string(), LIM_VERSION_STRING) != 0) return 1;
    std::puts("header     C++");
    return 0;
}
