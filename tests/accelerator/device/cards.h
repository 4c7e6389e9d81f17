/* The cards of a pretended machine: one file, mapped by every process that uses a card and by the stub NVML driver.
 *
 * Tests write capacity, ballast and faults; each process writes the bytes it holds. tests/accelerator/pretended/machine.py
 * has the same layout for Python.
 */
#ifndef PRETENDED_CARDS_H
#define PRETENDED_CARDS_H
#include <errno.h>
#include <signal.h>
#include <stdint.h>

#define CARDS_MAGIC "PCARDS1"
enum { CARDS_MOST = 8, CARDS_MOST_PROCESSES = 32, CARDS_TEXT = 48 };

typedef struct {
    int64_t pid; /* 0: free entry */
    uint64_t used_bytes;
} card_process;

typedef struct {
    char uuid[CARDS_TEXT], name[CARDS_TEXT];
    uint64_t capacity_bytes;
    uint64_t ballast_bytes;  /* held by processes that are not there */
    uint64_t context_bytes;  /* what a process holds beside its tensors, from its first allocation on */
    int64_t fail_in;         /* so many allocations succeed, then one fails; negative: none fails */
    int32_t fault;           /* the device is broken: every later call fails */
    int32_t lost;            /* the driver no longer reaches the card */
    int32_t hides_processes; /* the driver gives no figures by process, as on WSL and in some containers */
    int32_t poison;          /* new memory is filled with NaN */
    card_process processes[CARDS_MOST_PROCESSES];
} card;

typedef struct {
    char magic[8];
    int64_t count;
    card cards[CARDS_MOST];
} card_machine;

static inline int card_process_lives(const card_process *process) {
    return process->pid && (!kill((int)process->pid, 0) || errno != ESRCH);
}
#endif
