// A host's functions, by name.
#pragma once

#include <dlfcn.h>
#include <string>

namespace lim::ggml {

class Symbols {
  public:
    explicit Symbols(void *handle) : handle_(handle) {}

    template <class F> bool get(F &function, const char *name) const {
        function = reinterpret_cast<F>(dlsym(handle_, name));
        if (function == nullptr && missing_.empty()) missing_ = name;
        return function != nullptr;
    }

    // The first that was asked for and is not exported, as a sentence for the log.
    std::string missing() const { return "this host does not export " + missing_; }

  private:
    void               *handle_;
    mutable std::string missing_;
};

} // namespace lim::ggml
