// SPDX-License-Identifier: GPL-2.0
/* A kernel module that leaks at a known rate, and says exactly how much.
 *
 * Every `interval_ms` a tick takes `blocks` buffers of `buffer_bytes` bytes by kmalloc (leaky_forget_buffer) and as
 * many objects of `object_bytes` bytes from a cache of its own, "leaky_object" (leaky_forget_object); and it
 * takes and gives back as many of both (leaky_churn_buffer, leaky_churn_object).
 *
 * With leak=1 nothing of the first two is given back while the module is there. With leak=0 each tick first
 * gives back what the tick before it took: a module with nothing wrong.
 *
 * The truth stands in /proc/leaky, in the victims' words:
 *
 *   truth note ticks=12
 *   truth leaky_forget_buffer blocks=48 bytes=9600 allocated=48 freed=0
 *
 * Writing 1 to the parameter `held` returns when no tick runs and none will come; 0 lets them come again.
 *
 * What was leaked hangs in lists that only this file knows: when the module goes, it gives all back. With
 * forget=1 buffers aren't even in a list: they are lost for good. Objects always are, for a cache can't go
 * before its objects.
 */
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

static unsigned int interval_ms = 10;
module_param(interval_ms, uint, 0444);
MODULE_PARM_DESC(interval_ms, "milliseconds between two ticks");
static unsigned int blocks = 4;
module_param(blocks, uint, 0444);
MODULE_PARM_DESC(blocks, "buffers, and objects, a tick");
static unsigned int buffer_bytes = 200;
module_param(buffer_bytes, uint, 0444);
MODULE_PARM_DESC(buffer_bytes, "bytes of a buffer");
static unsigned int object_bytes = 96;
module_param(object_bytes, uint, 0444);
MODULE_PARM_DESC(object_bytes, "bytes of an object");
static bool leak = true;
module_param(leak, bool, 0444);
MODULE_PARM_DESC(leak, "0: give back at each tick what the one before it took");
static bool forget;
module_param(forget, bool, 0444);
MODULE_PARM_DESC(forget, "1: leave the buffers behind when the module goes");

/* Every block begins with its place in a list. */
struct account {
	const char *name;
	struct list_head held;
	unsigned long allocated, freed;
};
static struct account buffers = { "leaky_forget_buffer", LIST_HEAD_INIT(buffers.held) };
static struct account objects = { "leaky_forget_object", LIST_HEAD_INIT(objects.held) };
static unsigned long churned_buffers, churned_objects, ticks;

/* One tick is seen whole. */
static DEFINE_MUTEX(books);
static struct kmem_cache *cache;

/* A cache with a constructor is never merged with another one. */
static void construct(void *object)
{
	INIT_LIST_HEAD(object);
}

static noinline void leaky_forget_buffer(void)
{
	struct list_head *block = kmalloc(buffer_bytes, GFP_KERNEL);

	if (!block)
		return;
	buffers.allocated++;
	if (forget)
		INIT_LIST_HEAD(block);
	else
		list_add(block, &buffers.held);
}

static noinline void leaky_forget_object(void)
{
	struct list_head *block = kmem_cache_alloc(cache, GFP_KERNEL);

	if (!block)
		return;
	objects.allocated++;
	list_add(block, &objects.held);
}

static noinline void leaky_churn_buffer(void)
{
	void *block = kmalloc(buffer_bytes, GFP_KERNEL);

	if (!block)
		return;
	OPTIMIZER_HIDE_VAR(block);
	kfree(block);
	churned_buffers++;
}

static noinline void leaky_churn_object(void)
{
	void *block = kmem_cache_alloc(cache, GFP_KERNEL);

	if (!block)
		return;
	OPTIMIZER_HIDE_VAR(block);
	kmem_cache_free(cache, block);
	churned_objects++;
}

static noinline void leaky_give_back(void)
{
	struct list_head *block, *next;

	list_for_each_safe(block, next, &buffers.held) {
		list_del(block);
		kfree(block);
		buffers.freed++;
	}
	list_for_each_safe(block, next, &objects.held) {
		/* As the constructor left it. */
		list_del_init(block);
		kmem_cache_free(cache, block);
		objects.freed++;
	}
}

static void tick(struct work_struct *work);
static DECLARE_DELAYED_WORK(ticking, tick);

static void tick(struct work_struct *work)
{
	unsigned int i;

	mutex_lock(&books);
	if (!leak)
		leaky_give_back();
	for (i = 0; i < blocks; i++) {
		leaky_forget_buffer();
		leaky_forget_object();
		leaky_churn_buffer();
		leaky_churn_object();
	}
	ticks++;
	mutex_unlock(&books);
	schedule_delayed_work(&ticking, msecs_to_jiffies(interval_ms));
}

/* --- Held and let go. Parameters are written one at a time, under the module's lock for them. --- */

static bool held;
static bool running;

static int held_set(const char *text, const struct kernel_param *param)
{
	int error = param_set_bool(text, param);

	if (error || !running)
		return error;
	if (held) {
		cancel_delayed_work_sync(&ticking);
		/* The allocator's own lists give back their free objects: /proc/slabinfo counts exactly then. */
		kmem_cache_shrink(cache);
	} else {
		schedule_delayed_work(&ticking, 0);
	}
	return 0;
}

static const struct kernel_param_ops held_ops = { .set = held_set, .get = param_get_bool };
module_param_cb(held, &held_ops, &held, 0644);
MODULE_PARM_DESC(held, "1: no ticks");

static void set_running(bool now)
{
	kernel_param_lock(THIS_MODULE);
	running = now;
	if (!now)
		cancel_delayed_work_sync(&ticking);
	else if (!held)
		schedule_delayed_work(&ticking, 0);
	kernel_param_unlock(THIS_MODULE);
}

/* --- The truth. --- */

static void tell(struct seq_file *file, const char *name, unsigned long bytes, unsigned long allocated,
		 unsigned long freed)
{
	unsigned long left = allocated - freed;

	seq_printf(file, "truth %s blocks=%lu bytes=%lu allocated=%lu freed=%lu\n", name, left, left * bytes,
		   allocated, freed);
}

static int show(struct seq_file *file, void *unused)
{
	mutex_lock(&books);
	seq_printf(file, "truth note ticks=%lu\n", ticks);
	tell(file, buffers.name, buffer_bytes, buffers.allocated, buffers.freed);
	tell(file, objects.name, object_bytes, objects.allocated, objects.freed);
	tell(file, "leaky_churn_buffer", buffer_bytes, churned_buffers, churned_buffers);
	tell(file, "leaky_churn_object", object_bytes, churned_objects, churned_objects);
	mutex_unlock(&books);
	return 0;
}

static int __init leaky_init(void)
{
	if (buffer_bytes < sizeof(struct list_head) || object_bytes < sizeof(struct list_head) || blocks > 100000 ||
	    buffer_bytes > KMALLOC_MAX_SIZE || object_bytes > PAGE_SIZE)
		return -EINVAL;
	cache = kmem_cache_create("leaky_object", object_bytes, 0, 0, construct);
	if (!cache)
		return -ENOMEM;
	if (!proc_create_single("leaky", 0444, NULL, show)) {
		kmem_cache_destroy(cache);
		return -ENOMEM;
	}
	set_running(true);
	return 0;
}

static void __exit leaky_exit(void)
{
	set_running(false);
	remove_proc_entry("leaky", NULL);
	leaky_give_back();
	kmem_cache_destroy(cache);
}

module_init(leaky_init);
module_exit(leaky_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Leaks at a known rate, for the tests of a leak profiler");
