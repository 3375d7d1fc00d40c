// Runs kernels under emulation: launches come in on the standard input, what they leave in their buffers goes out.
//
// Compiled with emulated_cuda.h in front and two files of the test's making: sources.inc is the kernels' sources, kernels.inc
// names the kernels, one RUNNABLE(name) each. Everything is little-endian; a launch is
//   u32 length of the name, the name; u32 grid x, y, z; u32 block x; u32 bytes of dynamic shared memory;
//   u32 order (0 forwards, 1 backwards, 2 shuffled), u32 seed, u32 pattern of fresh shared memory;
//   u32 number of arguments; each: u32 kind, u64 length, then `length` bytes:
//     kind 0 a number, as many bytes as the parameter has; 1 a buffer that is read; 2 a buffer that is returned as well;
//     3 no buffer (a null pointer).
// The answer is, for each buffer of kind 2, its bytes. Every buffer is an allocation of exactly its length.
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>

#include "sources.inc"

namespace {

struct Argument {
    unsigned kind = 0;
    std::size_t length = 0;
    char* bytes = nullptr;
};

void get(void* to, std::size_t length) {
    if (length > 0 && std::fread(to, 1, length, stdin) != length) {
        std::fprintf(stderr, "the launch ends early\n");
        std::exit(4);
    }
}

unsigned get_u32() {
    unsigned value;
    get(&value, sizeof value);
    return value;
}

template <class P> P as(const Argument& argument) {
    if constexpr (std::is_pointer_v<P>) {
        if (argument.kind == 0) emulated::fail("a number was given for a pointer", 0, 0);
        return reinterpret_cast<P>(argument.bytes);
    } else {
        if (argument.kind != 0 || argument.length != sizeof(P)) emulated::fail("a number of another length was given", 0, 0);
        P value;
        std::memcpy(&value, argument.bytes, sizeof(P));
        return value;
    }
}

using Runnable = std::function<std::function<void()>(const std::vector<Argument>&)>;

template <class... P, std::size_t... N>
std::function<void()> with_arguments(void (*kernel)(P...), const std::vector<Argument>& arguments, std::index_sequence<N...>) {
    if (arguments.size() != sizeof...(P)) emulated::fail("another number of arguments was given", int(arguments.size()), int(sizeof...(P)));
    auto values = std::make_tuple(as<P>(arguments[N])...);
    return [kernel, values] { std::apply(kernel, values); };
}

template <class... P> Runnable runnable(void (*kernel)(P...)) {
    return [kernel](const std::vector<Argument>& arguments) {
        return with_arguments(kernel, arguments, std::index_sequence_for<P...>());
    };
}

const std::map<std::string, Runnable> KERNELS = {
#define RUNNABLE(name) {#name, runnable(&name)},
#include "kernels.inc"
};

}  // namespace

int main() {
    for (int first; (first = std::getc(stdin)) != EOF;) {
        std::ungetc(first, stdin);
        std::string name(get_u32(), ' ');
        get(name.data(), name.size());
        emulated::Launch launch{};
        launch.name = name.c_str();
        emulated::block.name = name.c_str();
        launch.grid = {get_u32(), 1, 1};
        launch.grid.y = get_u32();
        launch.grid.z = get_u32();
        launch.block = {get_u32(), 1, 1};
        launch.dynamic_bytes = get_u32();
        launch.order = emulated::Order(get_u32());
        launch.seed = get_u32();
        launch.pattern = static_cast<unsigned char>(get_u32());
        std::vector<Argument> arguments(get_u32());
        for (auto& argument : arguments) {
            argument.kind = get_u32();
            std::uint64_t length;
            get(&length, sizeof length);
            argument.length = length;
            if (argument.kind != 3) argument.bytes = static_cast<char*>(std::malloc(length));
            get(argument.bytes, length);
        }
        auto kernel = KERNELS.find(name);
        if (kernel == KERNELS.end()) emulated::fail("there is no such kernel", 0, 0);
        emulated::run(launch, kernel->second(arguments));
        for (auto& argument : arguments) {
            if (argument.kind == 2) std::fwrite(argument.bytes, 1, argument.length, stdout);
            std::free(argument.bytes);
        }
        std::fflush(stdout);
    }
}
