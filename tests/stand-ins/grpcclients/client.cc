// A gRPC client of C++: client TARGET METHOD MESSAGE. Messages are hexadecimal.
#include <chrono>
#include <cstdio>
#include <string>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

namespace {

std::string from_hex(const std::string& text) {
    std::string bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2) bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
    return bytes;
}

// Waits for the operation that was started last.
bool done(grpc::CompletionQueue& queue) {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
}

}  // namespace

int main(int, char** arguments) {
    grpc::GenericStub stub(grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    grpc::CompletionQueue queue;
    auto call = stub.PrepareCall(&context, arguments[2], &queue);
    grpc::Slice message(from_hex(arguments[3]));
    grpc::ByteBuffer request(&message, 1), answer;
    call->StartCall(nullptr);
    bool ok = done(queue);
    call->WriteLast(request, grpc::WriteOptions(), nullptr);
    ok = done(queue) && ok;
    call->Read(&answer, nullptr);
    if (!done(queue) || !ok) {
        grpc::Status status;
        call->Finish(&status, nullptr);
        done(queue);
        std::fprintf(stderr, "%s\n", status.error_message().c_str());
        return 1;
    }
    grpc::Slice whole;
    if (!answer.DumpToSingleSlice(&whole).ok()) return 1;
    for (auto byte : whole) std::printf("%02x", byte);
    std::printf("\n");
}
