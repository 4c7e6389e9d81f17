/* libnvidia-ml.so.1 for tests: the driver's functions that pynvml calls, answered from a text file.
 *
 * The file named by NVML_STUB_FILE is read again at every call, so a test changes the machine while a process watches:
 *   gpu uuid=GPU-1 name=Card total=1000 free=400 util=30 lost=0
 *   process gpu=0 pid=123 used=456
 *   mig gpu=0 uuid=MIG-1 name=Slice total=100 free=40
 *   answer call=nvmlDeviceGetMemoryInfo code=3          this call fails with NVML's code 3
 *   answer call=nvmlDeviceGetName gpu=0 bytes=f895a081  these bytes (hexadecimal) are the text, on this card only
 *   answer call=nvmlDeviceGetName fill=41               the whole buffer is this byte, without an end
 *   answer call=nvmlDeviceGetCount_v2 value=4294967295  the call's number
 * A card with `mig` lines is in MIG mode.
 * Or the file is the state of pretended cards (tests/accelerator/device/cards.h): used bytes follow what processes hold.
 * NVML_STUB_INIT_ERROR makes initialisation fail with that code. A missing file is a driver that is not loaded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../accelerator/device/cards.h"

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_PROCESSES = 32, MAX_ANSWERS = 32, TEXT = 96, FIRST_MIG_HANDLE = 1000, ANY_GPU = -1 };

typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;
typedef struct {
    char uuid[TEXT], name[TEXT];
    unsigned long long total, free;
    unsigned int utilization;
    int lost;
    unsigned int parent; /* of a MIG instance */
    unsigned int processes;
    process_t process[MAX_PROCESSES];
} gpu_t;
typedef struct {
    char call[TEXT];
    int gpu, code, filled, has_bytes, has_value;
    unsigned long long value;
    unsigned char fill, bytes[TEXT];
    unsigned int length;
} answer_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static gpu_t gpus[MAX_GPUS], migs[MAX_GPUS];
static answer_t answers[MAX_ANSWERS];
static unsigned int gpu_count, mig_count, answer_count;
static int initialized;

static void set_gpu(gpu_t *gpu, const char *key, const char *value) {
    if (!strcmp(key, "uuid")) snprintf(gpu->uuid, TEXT, "%s", value);
    else if (!strcmp(key, "name")) snprintf(gpu->name, TEXT, "%s", value);
    else if (!strcmp(key, "total")) gpu->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "free")) gpu->free = strtoull(value, NULL, 10);
    else if (!strcmp(key, "util")) gpu->utilization = (unsigned int)atoi(value);
    else if (!strcmp(key, "lost")) gpu->lost = atoi(value);
    else if (!strcmp(key, "gpu")) gpu->parent = (unsigned int)atoi(value);
}

static void set_bytes(answer_t *answer, const char *digits) {
    answer->has_bytes = 1;
    for (; digits[0] && digits[1] && answer->length < TEXT; digits += 2) {
        char pair[3] = {digits[0], digits[1], 0};
        answer->bytes[answer->length++] = (unsigned char)strtoul(pair, NULL, 16);
    }
}

static void set_answer(answer_t *answer, const char *key, const char *value) {
    if (!strcmp(key, "call")) snprintf(answer->call, TEXT, "%s", value);
    else if (!strcmp(key, "gpu")) answer->gpu = atoi(value);
    else if (!strcmp(key, "code")) answer->code = atoi(value);
    else if (!strcmp(key, "bytes")) set_bytes(answer, value);
    else if (!strcmp(key, "fill")) answer->filled = 1, answer->fill = (unsigned char)strtoul(value, NULL, 16);
    else if (!strcmp(key, "value")) answer->has_value = 1, answer->value = strtoull(value, NULL, 10);
}

static void read_line(char *line) {
    char *save = NULL, *word = strtok_r(line, " \t\n", &save);
    if (!word) return;
    gpu_t *gpu = NULL;
    answer_t *answer = NULL;
    if (!strcmp(word, "gpu") && gpu_count < MAX_GPUS) gpu = &gpus[gpu_count++];
    else if (!strcmp(word, "mig") && mig_count < MAX_GPUS) gpu = &migs[mig_count++];
    else if (!strcmp(word, "answer") && answer_count < MAX_ANSWERS) {
        answer = &answers[answer_count++];
        answer->gpu = ANY_GPU;
    }
    process_t process = {0, 0, 0xffffffffu, 0xffffffffu};
    unsigned int owner = MAX_GPUS;
    while ((word = strtok_r(NULL, " \t\n", &save))) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (gpu) set_gpu(gpu, word, value);
        else if (answer) set_answer(answer, word, value);
        else if (!strcmp(word, "gpu")) owner = (unsigned int)atoi(value);
        else if (!strcmp(word, "pid")) process.pid = (unsigned int)atoi(value);
        else if (!strcmp(word, "used")) process.used = strtoull(value, NULL, 10);
    }
    if (owner < gpu_count && gpus[owner].processes < MAX_PROCESSES)
        gpus[owner].process[gpus[owner].processes++] = process;
}

/* Whether the file is the state of pretended cards, which are the GPUs then. */
static int read_cards(FILE *file) {
    static card_machine machine;
    if (fread(&machine, 1, sizeof machine, file) != sizeof machine || strcmp(machine.magic, CARDS_MAGIC)) return 0;
    gpu_count = (unsigned int)machine.count;
    for (unsigned int i = 0; i < gpu_count; i++) {
        card *from = &machine.cards[i];
        gpu_t *gpu = &gpus[i];
        unsigned long long used = from->ballast_bytes;
        strcpy(gpu->uuid, from->uuid);
        strcpy(gpu->name, from->name);
        for (int each = 0; each < CARDS_MOST_PROCESSES; each++) {
            if (!card_process_lives(&from->processes[each])) continue;
            process_t process = {(unsigned int)from->processes[each].pid, from->processes[each].used_bytes, ~0u, ~0u};
            used += process.used;
            if (from->hides_processes) process.used = ~0ull; /* NVML_VALUE_NOT_AVAILABLE */
            if (gpu->processes < MAX_PROCESSES) gpu->process[gpu->processes++] = process;
        }
        gpu->total = from->capacity_bytes;
        gpu->free = used < gpu->total ? gpu->total - used : 0;
        gpu->lost = from->lost;
    }
    return 1;
}

static int read_machine(void) {
    const char *path = getenv("NVML_STUB_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    gpu_count = mig_count = answer_count = 0;
    memset(gpus, 0, sizeof gpus);
    memset(migs, 0, sizeof migs);
    memset(answers, 0, sizeof answers);
    if (!file) return DRIVER_NOT_LOADED;
    if (!read_cards(file)) {
        char line[1024];
        rewind(file);
        while (fgets(line, sizeof line, file)) read_line(line);
    }
    fclose(file);
    return SUCCESS;
}

/* The scripted answer of a call, or one that changes nothing. `gpu`: the card's number, or ANY_GPU. */
static const answer_t *scripted(const char *call, int gpu) {
    static const answer_t nothing;
    for (unsigned int i = 0; i < answer_count; i++)
        if (!strcmp(answers[i].call, call) && (answers[i].gpu == ANY_GPU || answers[i].gpu == gpu)) return &answers[i];
    return &nothing;
}

/* Find a card or MIG instance by handle; `answer` is what the file says of this call. */
static int find(const char *call, void *handle, gpu_t **gpu, const answer_t **answer) {
    if (!initialized) return UNINITIALIZED;
    if (read_machine()) return UNKNOWN;
    size_t number = (size_t)handle;
    if (number >= FIRST_MIG_HANDLE && number < FIRST_MIG_HANDLE + mig_count) {
        *gpu = &migs[number - FIRST_MIG_HANDLE];
        *answer = scripted(call, ANY_GPU - 1); /* a card's number does not name its instances */
        return (*answer)->code;
    }
    if (number < 1 || number > gpu_count) return INVALID_ARGUMENT;
    *gpu = &gpus[number - 1];
    *answer = scripted(call, (int)number - 1);
    if ((*answer)->code) return (*answer)->code;
    return (*gpu)->lost ? GPU_IS_LOST : SUCCESS;
}

static int text(const answer_t *answer, char *buffer, unsigned int length, const char *value) {
    if (answer->filled) {
        memset(buffer, answer->fill, length);
        return SUCCESS;
    }
    const void *bytes = answer->has_bytes ? (const void *)answer->bytes : value;
    unsigned int size = answer->has_bytes ? answer->length : (unsigned int)strlen(value);
    if (size + 1 > length) return INSUFFICIENT_SIZE;
    memcpy(buffer, bytes, size);
    buffer[size] = 0;
    return SUCCESS;
}

/* The scripted answer of a call that is not about a card. */
static int system_call(const char *call, const answer_t **answer) {
    if (!initialized) return UNINITIALIZED;
    if (read_machine()) return UNKNOWN;
    *answer = scripted(call, ANY_GPU);
    return (*answer)->code;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    const char *error = getenv("NVML_STUB_INIT_ERROR");
    if (error && *error) return atoi(error);
    int code = read_machine();
    if (!code) code = scripted("nvmlInitWithFlags", ANY_GPU)->code;
    if (!code) initialized++;
    return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    const answer_t *answer;
    int code = system_call("nvmlShutdown", &answer);
    if (!code) initialized--;
    return code;
}
const char *nvmlErrorString(int code) {
    const answer_t *answer = scripted("nvmlErrorString", ANY_GPU);
    if (answer->has_bytes) return (const char *)answer->bytes;
    return code ? "stub driver error" : "success";
}
int nvmlSystemGetDriverVersion(char *buffer, unsigned int length) {
    const answer_t *answer;
    int code = system_call("nvmlSystemGetDriverVersion", &answer);
    return code ? code : text(answer, buffer, length, "580.0-stub");
}
int nvmlSystemGetCudaDriverVersion(int *version) {
    const answer_t *answer;
    int code = system_call("nvmlSystemGetCudaDriverVersion", &answer);
    if (!code) *version = answer->has_value ? (int)answer->value : 13010;
    return code;
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
    const answer_t *answer;
    int code = system_call("nvmlDeviceGetCount_v2", &answer);
    if (!code) *count = answer->has_value ? (unsigned int)answer->value : gpu_count;
    return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    gpu_t *gpu;
    const answer_t *answer;
    *handle = (void *)((size_t)index + 1);
    return find("nvmlDeviceGetHandleByIndex_v2", *handle, &gpu, &answer);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    const answer_t *answer;
    int code = system_call("nvmlDeviceGetHandleByUUID", &answer);
    if (code) return code;
    for (unsigned int i = 0; i < gpu_count; i++)
        if (!strcmp(uuid, gpus[i].uuid)) {
            *handle = (void *)((size_t)i + 1);
            return SUCCESS;
        }
    for (unsigned int i = 0; i < mig_count; i++)
        if (!strcmp(uuid, migs[i].uuid)) {
            *handle = (void *)((size_t)i + FIRST_MIG_HANDLE);
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(void *handle, unsigned int *index) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetIndex", handle, &gpu, &answer);
    if (code) return code;
    if ((size_t)handle >= FIRST_MIG_HANDLE) return INVALID_ARGUMENT;
    *index = answer->has_value ? (unsigned int)answer->value : (unsigned int)((size_t)handle - 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned int length) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetUUID", handle, &gpu, &answer);
    return code ? code : text(answer, buffer, length, gpu->uuid);
}
int nvmlDeviceGetName(void *handle, char *buffer, unsigned int length) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetName", handle, &gpu, &answer);
    return code ? code : text(answer, buffer, length, gpu->name);
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetMemoryInfo", handle, &gpu, &answer);
    if (code) return code;
    memory->total = gpu->total;
    memory->free = gpu->free;
    memory->used = gpu->total - gpu->free;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *rates) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetUtilizationRates", handle, &gpu, &answer);
    if (code) return code;
    rates->gpu = answer->has_value ? (unsigned int)answer->value : gpu->utilization;
    rates->memory = 0;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *processes) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetComputeRunningProcesses_v3", handle, &gpu, &answer);
    if (code) return code;
    unsigned int room = *count;
    *count = answer->has_value ? (unsigned int)answer->value : gpu->processes;
    if (*count > room) return INSUFFICIENT_SIZE;
    memcpy(processes, gpu->process, (*count < MAX_PROCESSES ? *count : MAX_PROCESSES) * sizeof(process_t));
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetMigMode", handle, &gpu, &answer);
    if (code) return code;
    *current = 0;
    for (unsigned int i = 0; i < mig_count; i++) *current |= &gpus[migs[i].parent] == gpu;
    if (answer->has_value) *current = (unsigned int)answer->value;
    *pending = *current;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned int *count) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetMaxMigDeviceCount", handle, &gpu, &answer);
    if (!code) *count = answer->has_value ? (unsigned int)answer->value : 7;
    return code;
}
/* Slot `index` of a card holds its instance of that number among all `mig` lines: other slots are empty. */
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned int index, void **instance) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetMigDeviceHandleByIndex", handle, &gpu, &answer);
    if (code) return code;
    if (index >= mig_count || &gpus[migs[index].parent] != gpu) return NOT_FOUND;
    *instance = (void *)((size_t)index + FIRST_MIG_HANDLE);
    return SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **handle) {
    gpu_t *gpu;
    const answer_t *answer;
    int code = find("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance, &gpu, &answer);
    if (code) return code;
    if ((size_t)instance < FIRST_MIG_HANDLE) return INVALID_ARGUMENT;
    *handle = (void *)((size_t)gpu->parent + 1);
    return SUCCESS;
}
