// Threads that wait for work. One pool a process; a second caller at the same time does all of its work by itself.
#pragma once

// Calls work(context, i) for each i below `chunks`, on this thread and on up to `threads` - 1 others; returns when all
// are done. Who does which is left to chance: a thread that the system holds up takes fewer. Fewer than 2**20 chunks.
void run_chunks(int threads, int chunks, void (*work)(void *context, int chunk), void *context);

template <class Work> void in_parallel(int threads, int chunks, const Work &work) {
    run_chunks(threads, chunks, [](void *context, int chunk) { (*(const Work *)context)(chunk); }, (void *)&work);
}
