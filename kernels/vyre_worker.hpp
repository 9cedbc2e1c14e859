// Write a kernel worker in C++17: bytes in, bytes out, in a process of its own. One header, POSIX and Linux only.
//
//     int main(int argc, char **argv) {
//         return vyre_worker::main(argc, argv, [](const vyre_worker::Start &) {
//             return [](vyre_worker::Bytes request, vyre_worker::Response &response) {
//                 response.write(request.data, request.size);
//             };
//         });
//     }
//
// `--server` serves the parent that left its channel at descriptor 3; `--once REQUEST RESPONSE` reads one file and
// writes the other. A thrown Refusal is the typed answer to a request, or of the whole worker when it is thrown
// while it opens; any other exception ends the process. docs/worker-protocol.md has every byte.
//
// The request is read, and the response written, where they lie in the arena. The parent touches neither until it
// is answered. Offsets and lengths are checked before they are used.
#ifndef VYRE_WORKER_HPP
#define VYRE_WORKER_HPP

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vyre_worker {

constexpr uint32_t kMagic = 0x46525956; // "VYRF"
constexpr uint16_t kFrameVersion = 1;
constexpr uint32_t kProtocolVersion = 1;
constexpr size_t kHeaderBytes = 32;
constexpr size_t kMaxPayload = 64 * 1024 - kHeaderBytes;
constexpr int kMaxDescriptors = 4;
constexpr int kChannel = 3;

enum Kind : uint16_t {
    kHello = 0x01,
    kReady = 0x02,
    kRefused = 0x03,
    kRun = 0x10,
    kDone = 0x11,
    kPing = 0x12,
    kPong = 0x13,
    kClose = 0x14,
};

enum RefusalCode : uint32_t {
    kRefusedVersion = 1,
    kRefusedWorker = 2,
    kRefusedStart = 3,
    kRefusedRequest = 4,
    kRefusedResponseTooLarge = 5,
    kRefusedUser = 64, // the first of the kernel's own
};

enum ExitCode : int {
    kExitDone = 0,
    kExitFailure = 1,
    kExitUsage = 2,
    kExitRefused = 3,
    kExitFile = 4,
    kExitProtocol = 5,
};

// A typed no: to one request, or to HELLO.
struct Refusal {
    uint32_t code;
    std::string text;
};

struct Bytes {
    const uint8_t *data;
    size_t size;
};

// What a worker is told at its start.
struct Start {
    std::string kernel;
    uint32_t device = 0;
    std::vector<uint8_t> config;
};

// ---- the bytes: little-endian fields, one after the other, whatever this machine's order is

class Reader {
  public:
    explicit Reader(Bytes bytes) : rest_(bytes) {}

    bool number(uint64_t &value, size_t bytes) {
        if (rest_.size < bytes) {
            return false;
        }
        value = 0;
        for (size_t i = 0; i < bytes; ++i) {
            value |= static_cast<uint64_t>(rest_.data[i]) << (8 * i);
        }
        rest_ = {rest_.data + bytes, rest_.size - bytes};
        return true;
    }
    // A length of four bytes, then as many.
    bool counted(Bytes &value) {
        uint64_t count = 0;
        if (!number(count, 4) || rest_.size < count) {
            return false;
        }
        value = {rest_.data, static_cast<size_t>(count)};
        rest_ = {rest_.data + count, rest_.size - static_cast<size_t>(count)};
        return true;
    }
    Bytes rest() const { return rest_; }

  private:
    Bytes rest_;
};

inline void put(std::vector<uint8_t> &into, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) {
        into.push_back(static_cast<uint8_t>(value >> (8 * i)));
    }
}

inline void put_counted(std::vector<uint8_t> &into, std::string_view text) {
    put(into, text.size(), 4);
    into.insert(into.end(), text.begin(), text.end());
}

struct Header {
    uint16_t kind = 0;
    uint32_t payload = 0, descriptors = 0;
    uint64_t request = 0;
};

inline std::vector<uint8_t> encode_frame(uint16_t kind, uint64_t request, Bytes payload) {
    std::vector<uint8_t> bytes;
    bytes.reserve(kHeaderBytes + payload.size);
    put(bytes, kMagic, 4);
    put(bytes, kFrameVersion, 2);
    put(bytes, kind, 2);
    put(bytes, payload.size, 4);
    put(bytes, 0, 4); // a worker sends no descriptors
    put(bytes, request, 8);
    put(bytes, 0, 8);
    bytes.insert(bytes.end(), payload.data, payload.data + payload.size);
    return bytes;
}

// The payload of a packet, if all of its header is right.
inline std::optional<Bytes> decode_frame(Bytes packet, int descriptors, Header &header) {
    Reader reader(packet);
    uint64_t magic, version, kind, payload, count, request, reserved;
    if (!reader.number(magic, 4) || !reader.number(version, 2) || !reader.number(kind, 2) || !reader.number(payload, 4) ||
        !reader.number(count, 4) || !reader.number(request, 8) || !reader.number(reserved, 8)) {
        return std::nullopt;
    }
    if (magic != kMagic || version != kFrameVersion || reserved != 0 || payload != reader.rest().size ||
        count != static_cast<uint64_t>(descriptors)) {
        return std::nullopt;
    }
    header = {static_cast<uint16_t>(kind), static_cast<uint32_t>(payload), static_cast<uint32_t>(count), request};
    return reader.rest();
}

struct Hello {
    uint32_t version = 0;
    uint64_t arena_bytes = 0;
    Start start;
};

// Of another version, only the version is read.
inline bool decode_hello(Bytes payload, Hello &hello) {
    Reader reader(payload);
    uint64_t version, device;
    Bytes name, config;
    if (!reader.number(version, 4)) {
        return false;
    }
    hello.version = static_cast<uint32_t>(version);
    if (hello.version != kProtocolVersion) {
        return true;
    }
    if (!reader.number(hello.arena_bytes, 8) || !reader.counted(name) || !reader.counted(config) ||
        reader.rest().size != 0) {
        return false;
    }
    Reader own(config);
    if (!own.number(device, 4)) {
        return false;
    }
    hello.start.kernel.assign(reinterpret_cast<const char *>(name.data), name.size);
    hello.start.device = static_cast<uint32_t>(device);
    hello.start.config.assign(own.rest().data, own.rest().data + own.rest().size);
    return true;
}

inline std::vector<uint8_t> encode_ready(std::string_view text) {
    std::vector<uint8_t> bytes;
    put(bytes, kProtocolVersion, 4);
    put_counted(bytes, text.substr(0, kMaxPayload - 8));
    return bytes;
}

inline std::vector<uint8_t> encode_refused(const Refusal &refusal) {
    std::vector<uint8_t> bytes;
    put(bytes, refusal.code, 4);
    put_counted(bytes, std::string_view(refusal.text).substr(0, kMaxPayload - 8));
    return bytes;
}

struct Run {
    uint64_t request_offset, request_bytes, response_offset, response_bytes;
    uint64_t limit; // nanoseconds from its arrival until the parent kills this process; 0: none
};

inline bool decode_run(Bytes payload, Run &run) {
    Reader reader(payload);
    return reader.number(run.request_offset, 8) && reader.number(run.request_bytes, 8) &&
           reader.number(run.response_offset, 8) && reader.number(run.response_bytes, 8) && reader.number(run.limit, 8) &&
           reader.rest().size == 0;
}

inline std::vector<uint8_t> encode_done(uint64_t bytes) {
    std::vector<uint8_t> payload;
    put(payload, bytes, 8);
    return payload;
}

// Whether both ranges lie in the arena, and apart.
inline bool ranges_are_right(const Run &run, uint64_t arena) {
    const auto inside = [arena](uint64_t offset, uint64_t bytes) {
        return bytes == 0 || (offset <= arena && bytes <= arena - offset);
    };
    if (!inside(run.request_offset, run.request_bytes) || !inside(run.response_offset, run.response_bytes)) {
        return false;
    }
    return run.request_bytes == 0 || run.response_bytes == 0 ||
           run.request_offset + run.request_bytes <= run.response_offset ||
           run.response_offset + run.response_bytes <= run.request_offset;
}

// ---- what a kernel sees

// Where a kernel leaves its response.
class Response {
  public:
    using Clock = std::chrono::steady_clock;

    Response(uint8_t *room, size_t bytes, std::optional<Clock::time_point> deadline)
        : room_(room), bytes_(bytes), deadline_(deadline) {}
    Response() = default; // grows as needed

    // The next bytes of the response, to write into; valid until the next call. Throws a Refusal if the caller gave
    // no room for so many.
    uint8_t *reserve(size_t bytes) {
        if (room_ == nullptr) {
            own_.resize(used_ + bytes);
            used_ += bytes;
            return own_.data() + (used_ - bytes);
        }
        if (bytes > bytes_ - used_) {
            throw Refusal{kRefusedResponseTooLarge, "response of " + std::to_string(used_ + bytes) +
                                                        " bytes; the caller gave room for " + std::to_string(bytes_) +
                                                        ": give more"};
        }
        used_ += bytes;
        return room_ + (used_ - bytes);
    }
    void write(const void *data, size_t bytes) {
        uint8_t *to = reserve(bytes);
        if (bytes != 0) {
            std::memcpy(to, data, bytes);
        }
    }
    std::optional<Clock::time_point> deadline() const { return deadline_; }
    size_t size() const { return used_; }
    const uint8_t *grown() const { return own_.data(); }

  private:
    uint8_t *room_ = nullptr;
    size_t bytes_ = 0, used_ = 0;
    std::optional<Clock::time_point> deadline_;
    std::vector<uint8_t> own_;
};

using Handler = std::function<void(Bytes, Response &)>;
using Open = std::function<Handler(const Start &)>;

// ---- the channel

enum class Receive { kFrame, kEnd, kBroken };

class Channel {
  public:
    explicit Channel(int socket) : socket_(socket), packet_(kHeaderBytes + kMaxPayload) {}
    Channel(const Channel &) = delete;
    ~Channel() { close_descriptors(); }

    // The payload and the descriptors are valid until the next call.
    Receive receive(Header &header, Bytes &payload) {
        close_descriptors();
        iovec part = {packet_.data(), packet_.size()};
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxDescriptors)];
        msghdr message = {};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        ssize_t got;
        do {
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            got = recvmsg(socket_, &message, MSG_CMSG_CLOEXEC);
        } while (got < 0 && errno == EINTR);
        if (got <= 0) {
            return got == 0 || errno == ECONNRESET ? Receive::kEnd : Receive::kBroken;
        }
        for (cmsghdr *c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < count && descriptors_.size() < kMaxDescriptors; ++i) {
                    int descriptor;
                    std::memcpy(&descriptor, CMSG_DATA(c) + i * sizeof(int), sizeof descriptor);
                    descriptors_.push_back(descriptor);
                }
            }
        }
        if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
            return Receive::kBroken;
        }
        const auto decoded =
            decode_frame({packet_.data(), static_cast<size_t>(got)}, static_cast<int>(descriptors_.size()), header);
        if (!decoded) {
            return Receive::kBroken;
        }
        payload = *decoded;
        return Receive::kFrame;
    }

    bool send(uint16_t kind, uint64_t request, Bytes payload) {
        const std::vector<uint8_t> frame = encode_frame(kind, request, payload);
        ssize_t sent;
        do {
            sent = ::send(socket_, frame.data(), frame.size(), MSG_NOSIGNAL);
        } while (sent < 0 && errno == EINTR);
        return sent == static_cast<ssize_t>(frame.size());
    }
    bool send(uint16_t kind, uint64_t request, const std::vector<uint8_t> &payload) {
        return send(kind, request, Bytes{payload.data(), payload.size()});
    }

    int descriptor(size_t i) const { return i < descriptors_.size() ? descriptors_[i] : -1; }

  private:
    void close_descriptors() {
        for (const int descriptor : descriptors_) {
            close(descriptor);
        }
        descriptors_.clear();
    }

    int socket_;
    std::vector<uint8_t> packet_;
    std::vector<int> descriptors_;
};

// ---- the two ways to run

inline int broken(const char *what) {
    std::fprintf(stderr, "%s; `--server` is for a parent that left its channel at descriptor 3\n", what);
    return kExitProtocol;
}

// The arena, if its size is sealed and right: an access to it never faults then.
inline uint8_t *map_arena(int descriptor, uint64_t bytes) {
    const int seals = fcntl(descriptor, F_GET_SEALS);
    struct stat status = {};
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(descriptor, &status) != 0 || bytes == 0 ||
        static_cast<uint64_t>(status.st_size) < bytes) {
        return nullptr;
    }
    void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<uint8_t *>(mapped);
}

inline bool run_request(Channel &channel, const Header &header, Bytes payload, uint8_t *arena, uint64_t arena_bytes,
                        const Handler &handler) {
    Run run;
    try {
        if (!decode_run(payload, run) || !ranges_are_right(run, arena_bytes)) {
            throw Refusal{kRefusedRequest, "the ranges of this request overlap or leave the arena"};
        }
        std::optional<Response::Clock::time_point> deadline;
        if (run.limit != 0 && run.limit <= INT64_MAX) {
            deadline = Response::Clock::now() + std::chrono::nanoseconds(run.limit);
        }
        uint8_t *room = arena + (run.response_bytes == 0 ? 0 : run.response_offset);
        Response response(room, run.response_bytes, deadline);
        const uint8_t *request = arena + (run.request_bytes == 0 ? 0 : run.request_offset);
        handler({request, static_cast<size_t>(run.request_bytes)}, response);
        return channel.send(kDone, header.request, encode_done(response.size()));
    } catch (const Refusal &refusal) {
        return channel.send(kRefused, header.request, encode_refused(refusal));
    }
}

inline int server(const Open &open) {
    struct stat status = {};
    if (fstat(kChannel, &status) != 0 || !S_ISSOCK(status.st_mode)) {
        return broken("descriptor 3 is no socket");
    }
    Channel channel(kChannel);
    Header header;
    Bytes payload = {};
    Hello hello;
    const Receive first = channel.receive(header, payload);
    if (first == Receive::kEnd) {
        return kExitDone;
    }
    if (first != Receive::kFrame || header.kind != kHello || !decode_hello(payload, hello)) {
        return broken("the first frame is no HELLO");
    }
    if (hello.version != kProtocolVersion) {
        channel.send(kRefused, 0,
                     encode_refused({kRefusedVersion, "the worker speaks protocol version 1; build both from one version"}));
        return broken("the parent speaks another version of the protocol");
    }
    uint8_t *arena = map_arena(channel.descriptor(0), hello.arena_bytes);
    if (arena == nullptr) {
        return broken("the arena is missing, too small, or not sealed");
    }
    Handler handler;
    try {
        handler = open(hello.start);
    } catch (const Refusal &refusal) {
        channel.send(kRefused, 0, encode_refused(refusal));
        return kExitDone;
    }
    if (!channel.send(kReady, 0, encode_ready(hello.start.kernel + " in process " + std::to_string(getpid())))) {
        return kExitDone;
    }
    for (;;) {
        const Receive received = channel.receive(header, payload);
        if (received == Receive::kEnd) {
            return kExitDone;
        }
        if (received == Receive::kBroken) {
            return broken("the parent left the protocol");
        }
        bool sent = true;
        switch (header.kind) {
        case kRun:
            sent = run_request(channel, header, payload, arena, hello.arena_bytes, handler);
            break;
        case kPing:
            sent = channel.send(kPong, header.request, payload);
            break;
        case kClose:
            return kExitDone;
        default:
            sent = channel.send(kRefused, header.request, encode_refused({kRefusedRequest, "frames of this kind are not known"}));
        }
        if (!sent) {
            return kExitDone; // the parent is gone
        }
    }
}

inline bool read_file(const char *path, std::vector<uint8_t> &bytes) {
    std::FILE *file = std::fopen(path, "rb");
    if (file == nullptr) {
        return false;
    }
    uint8_t block[64 * 1024];
    for (size_t got; (got = std::fread(block, 1, sizeof block, file)) != 0;) {
        bytes.insert(bytes.end(), block, block + got);
    }
    const bool good = std::ferror(file) == 0;
    std::fclose(file);
    return good;
}

inline bool write_file(const char *path, const uint8_t *bytes, size_t size) {
    std::FILE *file = std::fopen(path, "wb");
    if (file == nullptr) {
        return false;
    }
    const bool good = std::fwrite(bytes, 1, size, file) == size;
    return std::fclose(file) == 0 && good;
}

inline int once(const Open &open, const char *request, const char *response) {
    const auto variable = [](const char *name) {
        const char *value = std::getenv(name);
        return std::string(value == nullptr ? "" : value);
    };
    Start start;
    start.kernel = variable("VYRE_KERNEL");
    start.device = static_cast<uint32_t>(std::strtoul(variable("VYRE_DEVICE").c_str(), nullptr, 10));
    const std::string config = variable("VYRE_CONFIG");
    std::vector<uint8_t> bytes;
    if (!read_file(request, bytes) || (!config.empty() && !read_file(config.c_str(), start.config))) {
        std::fprintf(stderr, "cannot read the request %s, or the file that VYRE_CONFIG names\n", request);
        return kExitFile;
    }
    Response own;
    try {
        open(start)({bytes.data(), bytes.size()}, own);
    } catch (const Refusal &refusal) {
        std::fprintf(stderr, "refused with code %u: %s\n", refusal.code, refusal.text.c_str());
        return kExitRefused;
    }
    if (!write_file(response, own.grown(), own.size())) {
        std::fprintf(stderr, "cannot write the response %s\n", response);
        return kExitFile;
    }
    return kExitDone;
}

inline int main(int argc, char **argv, const Open &open) {
    const std::string_view mode = argc > 1 ? argv[1] : "";
    if (mode == "--server" && argc == 2) {
        return server(open);
    }
    if (mode == "--once" && argc == 4) {
        return once(open, argv[2], argv[3]);
    }
    std::fprintf(stderr, "usage: %s --server | --once REQUEST RESPONSE\n", argc > 0 ? argv[0] : "kernel");
    return kExitUsage;
}

} // namespace vyre_worker

#endif
