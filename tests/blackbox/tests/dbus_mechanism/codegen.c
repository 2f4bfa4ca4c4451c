/* A service as gdbus-codegen(1) makes it of codegen.xml: what comes is checked by the types of the generated code. */
#include <gio/gunixfdlist.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "generated.h"

static gboolean all(TestCodegen *object, GDBusMethodInvocation *call, guchar y, gboolean b, gint16 n, guint16 q, gint i,
                    guint u, gint64 x, guint64 t, gdouble d, const gchar *s, const gchar *o, const gchar *g,
                    const gchar *bytes, const gchar *const *texts)
{
    test_codegen_complete_all(object, call, y, b, n, q, i, u, x, t, d, s, o, g, bytes, texts);
    return TRUE;
}

static gboolean nested(TestCodegen *object, GDBusMethodInvocation *call, GVariant *values, GVariant *list, GVariant *any)
{
    test_codegen_emit_told(object, "nested", values);
    test_codegen_complete_nested(object, call, values, list, any);
    return TRUE;
}

/* Writes into the descriptor that came, and gives one that something can be read from. */
static gboolean handle(TestCodegen *object, GDBusMethodInvocation *call, GUnixFDList *came, GVariant *index)
{
    int fd = g_unix_fd_list_get(came, g_variant_get_handle(index), NULL), ends[2];
    if (fd < 0 || pipe(ends) != 0 || write(fd, "to you", 6) != 6 || write(ends[1], "from me", 7) != 7)
        abort();
    close(fd);
    close(ends[1]);
    GUnixFDList *given = g_unix_fd_list_new();
    gint given_index = g_unix_fd_list_append(given, ends[0], NULL);
    close(ends[0]);
    test_codegen_complete_handle(object, call, given, g_variant_new_handle(given_index));
    g_object_unref(given);
    return TRUE;
}

static gboolean fail(TestCodegen *object, GDBusMethodInvocation *call, const gchar *why)
{
    (void)object;
    g_dbus_method_invocation_return_dbus_error(call, "org.test.Error.Failed", why);
    return TRUE;
}

/* Answers the call before this one. */
static gboolean slow(TestCodegen *object, GDBusMethodInvocation *call, const gchar *text)
{
    static GDBusMethodInvocation *before;
    static gchar *owed;
    if (before != NULL)
        test_codegen_complete_slow(object, before, owed);
    before = call;
    g_free(owed);
    owed = g_strdup(text);
    return TRUE;
}

static gboolean die(TestCodegen *object, GDBusMethodInvocation *call)
{
    (void)object, (void)call;
    _exit(3);
}

static void named(GDBusConnection *connection, const gchar *name, gpointer data)
{
    (void)connection, (void)name, (void)data;
    puts("ready");
    fflush(stdout);
}

int main(int count, char **words)
{
    GError *error = NULL;
    GDBusConnection *connection = g_dbus_connection_new_for_address_sync(
        count > 1 ? words[1] : "",
        G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT | G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION, NULL, NULL,
        &error);
    if (connection == NULL) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    TestCodegen *object = test_codegen_skeleton_new();
    test_codegen_set_level(object, 7);
    g_signal_connect(object, "handle-all", G_CALLBACK(all), NULL);
    g_signal_connect(object, "handle-nested", G_CALLBACK(nested), NULL);
    g_signal_connect(object, "handle-handle", G_CALLBACK(handle), NULL);
    g_signal_connect(object, "handle-fail", G_CALLBACK(fail), NULL);
    g_signal_connect(object, "handle-slow", G_CALLBACK(slow), NULL);
    g_signal_connect(object, "handle-die", G_CALLBACK(die), NULL);
    if (!g_dbus_interface_skeleton_export(G_DBUS_INTERFACE_SKELETON(object), connection, "/org/test/Codegen", &error)) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    g_bus_own_name_on_connection(connection, "org.test.Codegen", 0, named, NULL, NULL, NULL);
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
}
