/* libnvidia-ml.so.1 for tests: the driver's functions that pynvml calls, answered from a text file.
 *
 * The file named by NVML_STUB_FILE is read again at every call, so a test changes the machine while a process watches:
 *   gpu uuid=GPU-1 name=Card total=1000 free=400 util=30 lost=0
 *   process gpu=0 pid=123 used=456
 * NVML_STUB_INIT_ERROR makes initialisation fail with that code. A missing file is a driver that is not loaded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_PROCESSES = 32, TEXT = 96 };

typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;
typedef struct {
    char uuid[TEXT], name[TEXT];
    unsigned long long total, free;
    unsigned int utilization;
    int lost;
    unsigned int processes;
    process_t process[MAX_PROCESSES];
} gpu_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static gpu_t gpus[MAX_GPUS];
static unsigned int gpu_count;
static int initialized;

static void set_gpu(gpu_t *gpu, const char *key, const char *value) {
    if (!strcmp(key, "uuid")) snprintf(gpu->uuid, TEXT, "%s", value);
    else if (!strcmp(key, "name")) snprintf(gpu->name, TEXT, "%s", value);
    else if (!strcmp(key, "total")) gpu->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "free")) gpu->free = strtoull(value, NULL, 10);
    else if (!strcmp(key, "util")) gpu->utilization = (unsigned int)atoi(value);
    else if (!strcmp(key, "lost")) gpu->lost = atoi(value);
}

static void read_line(char *line) {
    char *save = NULL, *word = strtok_r(line, " \t\n", &save);
    if (!word) return;
    gpu_t *gpu = NULL;
    if (!strcmp(word, "gpu") && gpu_count < MAX_GPUS) gpu = &gpus[gpu_count++];
    process_t process = {0, 0, 0xffffffffu, 0xffffffffu};
    unsigned int owner = MAX_GPUS;
    while ((word = strtok_r(NULL, " \t\n", &save))) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (gpu) set_gpu(gpu, word, value);
        else if (!strcmp(word, "gpu")) owner = (unsigned int)atoi(value);
        else if (!strcmp(word, "pid")) process.pid = (unsigned int)atoi(value);
        else if (!strcmp(word, "used")) process.used = strtoull(value, NULL, 10);
    }
    if (owner < gpu_count && gpus[owner].processes < MAX_PROCESSES)
        gpus[owner].process[gpus[owner].processes++] = process;
}

static int read_machine(void) {
    const char *path = getenv("NVML_STUB_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    gpu_count = 0;
    memset(gpus, 0, sizeof gpus);
    if (!file) return DRIVER_NOT_LOADED;
    char line[1024];
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
    return SUCCESS;
}

static int find(void *handle, gpu_t **gpu) {
    if (!initialized) return UNINITIALIZED;
    int code = read_machine();
    if (code) return UNKNOWN;
    size_t number = (size_t)handle;
    if (number < 1 || number > gpu_count) return INVALID_ARGUMENT;
    *gpu = &gpus[number - 1];
    return (*gpu)->lost ? GPU_IS_LOST : SUCCESS;
}

static int text(char *buffer, unsigned int length, const char *value) {
    if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    const char *error = getenv("NVML_STUB_INIT_ERROR");
    if (error && *error) return atoi(error);
    int code = read_machine();
    if (!code) initialized++;
    return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}
const char *nvmlErrorString(int code) { return code ? "stub driver error" : "success"; }
int nvmlSystemGetDriverVersion(char *buffer, unsigned int length) {
    return initialized ? text(buffer, length, "580.0-stub") : UNINITIALIZED;
}
int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = 13010;
    return initialized ? SUCCESS : UNINITIALIZED;
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!initialized) return UNINITIALIZED;
    if (read_machine()) return UNKNOWN;
    *count = gpu_count;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    gpu_t *gpu;
    *handle = (void *)((size_t)index + 1);
    return find(*handle, &gpu);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (!initialized) return UNINITIALIZED;
    if (read_machine()) return UNKNOWN;
    for (unsigned int i = 0; i < gpu_count; i++)
        if (!strcmp(uuid, gpus[i].uuid)) {
            *handle = (void *)((size_t)i + 1);
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(void *handle, unsigned int *index) {
    gpu_t *gpu;
    *index = (unsigned int)((size_t)handle - 1);
    return find(handle, &gpu);
}
int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned int length) {
    gpu_t *gpu;
    int code = find(handle, &gpu);
    return code ? code : text(buffer, length, gpu->uuid);
}
int nvmlDeviceGetName(void *handle, char *buffer, unsigned int length) {
    gpu_t *gpu;
    int code = find(handle, &gpu);
    return code ? code : text(buffer, length, gpu->name);
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    gpu_t *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    memory->total = gpu->total;
    memory->free = gpu->free;
    memory->used = gpu->total - gpu->free;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *rates) {
    gpu_t *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    rates->gpu = gpu->utilization;
    rates->memory = 0;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *processes) {
    gpu_t *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    unsigned int room = *count;
    *count = gpu->processes;
    if (gpu->processes > room) return INSUFFICIENT_SIZE;
    memcpy(processes, gpu->process, gpu->processes * sizeof(process_t));
    return SUCCESS;
}
