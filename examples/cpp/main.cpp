// Runs a model of token ids with ONNX Runtime's C++ interface: no Python, no lowrank.
//
//     ./tokens model.onnx 101 7592 2088 102
//
// Prints the shape of the first output, its first numbers, and the median of the milliseconds of a run. The weights
// beside the graph (model.onnx.data) are mapped from where they are; a model.ort is one file.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
    if (count < 3) {
        std::fprintf(stderr, "give a model and token ids: %s model.onnx 101 7592 102\n", arguments[0]);
        return 2;
    }
    const std::vector<std::string> words(arguments + 2, arguments + count);
    std::vector<int64_t> ids, ones(words.size(), 1), zeros(words.size(), 0);
    for (const std::string& word : words) ids.push_back(std::stoll(word));

    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "tokens");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    Ort::Session session(environment, arguments[1], options);

    // The inputs are those that the graph names: ids, a mask of what is no padding, and what is left is zero.
    Ort::AllocatorWithDefaultOptions allocator;
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::vector<int64_t> shape{1, static_cast<int64_t>(ids.size())};
    std::vector<std::string> names;
    std::vector<Ort::Value> values;
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
        names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
        auto& numbers = names.back() == "input_ids" ? ids : names.back() == "attention_mask" ? ones : zeros;
        values.push_back(Ort::Value::CreateTensor<int64_t>(memory, numbers.data(), numbers.size(), shape.data(), 2));
    }
    std::vector<const char*> inputs;
    for (const std::string& name : names) inputs.push_back(name.c_str());
    const std::string output = session.GetOutputNameAllocated(0, allocator).get();
    const char* outputs[] = {output.c_str()};

    std::vector<double> times;
    std::vector<Ort::Value> found;
    for (int run = 0; run < 20; ++run) {
        const auto start = std::chrono::steady_clock::now();
        found = session.Run(Ort::RunOptions{}, inputs.data(), values.data(), values.size(), outputs, 1);
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());

    const auto information = found[0].GetTensorTypeAndShapeInfo();
    std::printf("%s", output.c_str());
    for (const int64_t size : information.GetShape()) std::printf(" %lld", static_cast<long long>(size));
    const float* numbers = found[0].GetTensorData<float>();
    std::printf("\n");
    for (size_t i = 0; i < std::min<size_t>(8, information.GetElementCount()); ++i) std::printf("%.6f ", numbers[i]);
    std::printf("\n%.3f ms\n", times[times.size() / 2]);
    return 0;
} catch (const std::exception& error) {
    // Ort::Exception says which file, and why.
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
