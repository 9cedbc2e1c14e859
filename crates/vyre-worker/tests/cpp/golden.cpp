// Holds the C++ header against the frames of tests/golden_frames.txt: reads what a worker reads, writes what it
// writes. The file is given on standard input, `NAME HEX` a line.
#include "vyre_worker.hpp"

#include <iostream>

using namespace vyre_worker;

static int failures = 0;

static void check(bool right, const std::string &what) {
    if (!right) {
        std::cerr << "wrong: " << what << "\n";
        ++failures;
    }
}

static Bytes all(const std::vector<uint8_t> &bytes) { return {bytes.data(), bytes.size()}; }

int main() {
    std::string name, hex;
    int seen = 0;
    while (std::cin >> name >> hex) {
        std::vector<uint8_t> packet;
        for (size_t i = 0; i + 1 < hex.size(); i += 2) {
            packet.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
        }
        Header header;
        const auto payload = decode_frame(all(packet), name == "HELLO" ? 1 : 0, header);
        check(payload.has_value(), name + ": header");
        if (!payload) {
            continue;
        }
        ++seen;
        if (name == "HELLO") {
            Hello hello;
            check(decode_hello(*payload, hello), name);
            check(hello.version == 1 && hello.arena_bytes == 0x1000000 && hello.start.kernel == "gemm_f16", name);
            check(hello.start.device == 2 && std::string(hello.start.config.begin(), hello.start.config.end()) == "own", name);
        } else if (name == "RUN") {
            Run run;
            check(decode_run(*payload, run), name);
            check(header.request == 0x0102030405060708 && run.request_offset == 64 && run.request_bytes == 5 &&
                      run.response_offset == 128 && run.response_bytes == 4096 && run.limit == 1500000000, name);
            check(ranges_are_right(run, 8192) && !ranges_are_right(run, 4223), name);
        } else if (name == "READY") {
            check(encode_frame(kReady, 0, all(encode_ready("here"))) == packet, name);
        } else if (name == "REFUSED") {
            check(encode_frame(kRefused, 3, all(encode_refused({64, "no"}))) == packet, name);
        } else if (name == "DONE") {
            check(encode_frame(kDone, 0x0102030405060708, all(encode_done(4096))) == packet, name);
        } else if (name == "PING") {
            check(header.kind == kPing && header.request == 4 && payload->size == 0, name);
        } else if (name == "PONG") {
            check(encode_frame(kPong, 4, {nullptr, 0}) == packet, name);
        } else if (name == "CLOSE") {
            check(header.kind == kClose, name);
        } else {
            check(false, name + ": not known");
        }
        // One byte changed anywhere in the fixed fields is refused.
        for (const size_t at : {0u, 4u, 8u, 12u, 24u, 31u}) {
            std::vector<uint8_t> bad = packet;
            bad[at] ^= 0x20;
            check(!decode_frame(all(bad), name == "HELLO" ? 1 : 0, header), name + ": byte " + std::to_string(at));
        }
    }
    check(seen == 8, "number of frames");
    // Ranges that must be refused: overlapping, past the end, and past the end by overflow.
    check(!ranges_are_right({0, 10, 9, 10, 0}, 100), "overlap");
    check(!ranges_are_right({UINT64_MAX, 1, 0, 1, 0}, 100), "overflow");
    check(!ranges_are_right({1, UINT64_MAX, 0, 0, 0}, 100), "overflow of the length");
    check(ranges_are_right({UINT64_MAX, 0, 0, 100, 0}, 100), "an empty range is everywhere");
    return failures == 0 ? 0 : 1;
}
