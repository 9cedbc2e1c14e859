// A kernel written with the C++ header; tests/cpp.rs serves it.
#include "vyre_worker.hpp"

int main(int argc, char **argv) {
    return vyre_worker::main(argc, argv, [](const vyre_worker::Start &start) -> vyre_worker::Handler {
        if (start.device == 9) {
            throw vyre_worker::Refusal{vyre_worker::kRefusedStart, "no such device"};
        }
        return [start](vyre_worker::Bytes request, vyre_worker::Response &response) {
            const std::string text(reinterpret_cast<const char *>(request.data), request.size);
            if (text == "refuse") {
                throw vyre_worker::Refusal{vyre_worker::kRefusedUser, "as asked"};
            }
            if (text == "start") {
                response.write(start.kernel.data(), start.kernel.size());
                response.write(start.config.data(), start.config.size());
                return;
            }
            if (text == "abort") {
                std::fputs("last words\n", stderr);
                std::abort();
            }
            response.write(request.data, request.size);
        };
    });
}
